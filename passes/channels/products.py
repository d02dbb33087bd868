"""Operators that sum over channels: convolutions and matrix products."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.channels.axes import Axes, Dims, Ids, Opaque, size, sizes
from graphopt.passes.channels.channelwise import broadcast
from graphopt.passes.channels.operands import read, said


def conv(axes: Axes, node: ir.Node) -> Dims:
    """Conv: input channels meet the weight's, outputs are its first axis."""
    x, w = axes.dims(node.inputs[0]), axes.dims(node.inputs[1])
    group = node.attributes.get_int("group", 1)
    if group == 1:
        axes.tie(x[1], w[1], said(node))
        out = w[0]
    else:
        out = _grouped(axes, node, x[1], w, group)
    return _with_bias(axes, node, [x[0], out, *[None] * (len(x) - 2)])


def _grouped(axes: Axes, node: ir.Node, x: Ids, w: Dims, group: int) -> Ids:
    """Channels of few, large groups go alike from each of them; else groups go as a whole, as in a depthwise one."""
    out, who = w[0], said(node)
    if x is None or out is None:
        axes.fix(x, who)
        axes.fix(out, who)
        axes.fix(w[1], who)
        return None
    inputs, outputs = x.reshape(group, -1), out.reshape(group, -1)
    if inputs.shape[1] <= group:
        axes.fix(w[1], "it is inside a group")
        for column in [*inputs.T, *outputs.T]:
            axes.tie(inputs[:, 0], column, who)
    else:
        for row in inputs:
            axes.tie(row, w[1], who)
        for row in outputs:
            axes.tie(row, outputs[0], who)
    return out


def conv_transpose(axes: Axes, node: ir.Node) -> Dims:
    """ConvTranspose: not grouped, or depthwise."""
    x, w = axes.dims(node.inputs[0]), axes.dims(node.inputs[1])
    group = node.attributes.get_int("group", 1)
    axes.tie(x[1], w[0], said(node))
    out = w[1]
    if group > 1:
        if size(node.inputs[1], 1) != 1 or size(node.inputs[1], 0) != group:
            raise Opaque("it is grouped")
        out = w[0]
    return _with_bias(axes, node, [x[0], out, *[None] * (len(x) - 2)])


def _with_bias(axes: Axes, node: ir.Node, dims: Dims) -> Dims:
    bias = read(node, 2)
    if bias is not None:
        dims[1] = axes.tie(dims[1], axes.dims(bias)[0], f"the bias of {said(node)}")
    return dims


def matmul(axes: Axes, node: ir.Node) -> Dims:
    """MatMul: the summed axes meet, the outer ones broadcast."""
    a, b = axes.dims(node.inputs[0]), axes.dims(node.inputs[1])
    if len(a) < 2 or len(b) < 2:
        raise Opaque("an operand is a vector")
    axes.tie(a[-1], b[-2], said(node))
    shapes = [sizes(value)[:-2] for value in node.inputs]
    outer = broadcast(axes, [a[:-2], b[:-2]], shapes, said(node)) if len(a) > 2 or len(b) > 2 else []
    return [*outer, a[-2], b[-1]]


def gemm(axes: Axes, node: ir.Node) -> Dims:
    """Gemm with its transposes and its addend."""
    a, b = axes.dims(node.inputs[0]), axes.dims(node.inputs[1])
    a = a[::-1] if node.attributes.get_int("transA", 0) else a
    b = b[::-1] if node.attributes.get_int("transB", 0) else b
    axes.tie(a[1], b[0], said(node))
    out, c = [a[0], b[1]], read(node, 2)
    if c is None:
        return out
    output = sizes(node.outputs[0])
    return broadcast(axes, [out, axes.dims(c)], [output, sizes(c)], said(node))
