"""Transposed convolutions onto the kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.llvm.kernels import conv, deconv
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.plan.epilogues import Tail
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, image, is_turned


def problem(node: ir.Node) -> Conv | None:
    """The transposed convolution that `node` is, if the kernel covers it: stride = kernel, nothing cut off."""
    if node.op_type != "ConvTranspose" or node.domain != "":
        return None
    weight, bias = constant_array(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    x, y = image(node.inputs[0]), image(node.outputs[0])
    if weight is None or weight.ndim != 4 or (bias is not None and constant_array(bias) is None):
        return None
    if x is None or y is None or any(v is not None and is_turned(v) for v in (node.inputs[0], node.outputs[0])):
        return None
    kernel = (weight.shape[2], weight.shape[3])
    plain = tuple(node.attributes.get_ints("strides", [1, 1])) == kernel and node.attributes.get_int("group", 1) == 1
    whole = tuple(node.attributes.get_ints("dilations", [1, 1])) == (1, 1)
    whole = whole and not any(node.attributes.get_ints("pads", [0])) and "output_shape" not in node.attributes
    if not plain or not whole or (y.h, y.w) != (x.h * kernel[0], x.w * kernel[1]):
        return None
    return Conv(x.batch, x.h, x.w, x.c, y.c, kernel, kernel)


def emit(tail: Tail, c: Conv, kernels: Kernels, twins: Twins) -> None:
    """Put the kernel call in front of the tail's last node, and make its result the twin of the tail's value."""
    node = tail.nodes[0]
    x, weight, bias = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    array, lanes = constant_array(weight), kernels.isa.lanes
    assert x is not None
    assert weight is not None
    assert array is not None
    b = np.zeros(c.co, np.float32) if bias is None else constant_array(bias)
    assert b is not None
    packed = kernels.constant(("deconv", weight, lanes), f"{weight.name}_packed", lambda: deconv.pack(array, lanes))
    shift = kernels.constant(
        ("deconv bias", bias, c.kernel[1], c.co, lanes),
        f"{weight.name}_bias",
        lambda: conv.pack_bias(np.tile(b, c.kernel[1]), c.co * c.kernel[1], lanes),
    )
    symbol = kernels.symbol(
        ("deconv", c, tail.epilogue), "deconv",
        lambda s: deconv.make(c, kernels.isa, tail.epilogue, kernels.parallel, s),
    )  # fmt: skip
    shape = image(tail.value)
    assert shape is not None
    residual = [] if tail.residual is None else [twins.last(tail.residual)]
    called = call(symbol, [twins.last(x), packed, shift, *residual], shape.last, tail.last)
    twins.insert(called)
    twins.set(tail.value, called.outputs[0])
