"""Maxima and means over windows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.npu.candidate import Candidate, Quantized, Views, clamped, dequantized, requantised, sources_of
from graphopt.targets.npu.partition import RefusedError
from graphopt.targets.npu.program import Op, Table, Tensor, View, Window, whole
from graphopt.targets.npu.shapes import pads_before, static_shape


def window(node: ir.Node, behind: tuple[ir.Node, ...], last: ir.Node, result: Quantized) -> Candidate:
    """A pool, with the activations `behind` it and the QuantizeLinear `last`."""
    (x,) = sources_of(node) if node.op_type != "ReduceMean" else _sources_of_first(node)
    shape = static_shape(node.inputs[0])
    if shape is None or len(shape) != 4 or len(node.outputs) > 1:
        raise RefusedError("its input is no image of fixed shape, or it has two results")
    kernel, stride, pad = _geometry(node, shape)
    maximum = node.op_type in ("MaxPool", "GlobalMaxPool")
    bounds = clamped(behind, result)
    name = str(node.name)
    if maximum and (x.scale, x.quantum) != (result.scale, bounds):
        if behind:
            raise RefusedError("an activation stands behind a maximum")
        table = requantised(x, result)

        def both(sources: Views, out: View) -> list[Op]:
            between = whole(Tensor(f"{name}_maximum", out.shape))
            first = Window(
                name, node.op_type, sources[0], between, kernel, stride, pad, x.quantum, x.quantum, maximum=True
            )
            return [first, Table(name, node.op_type, between, out, table)]

        return Candidate(node, (node, last), (x.value,), result.value, both)
    scale = np.float32(x.scale / result.scale)

    def ops(sources: Views, out: View) -> list[Op]:
        return [Window(name, node.op_type, sources[0], out, kernel, stride, pad, x.quantum, bounds, maximum, scale)]

    return Candidate(node, (node, *behind, last), (x.value,), result.value, ops)


def _sources_of_first(node: ir.Node) -> list[Quantized]:
    q = dequantized(node.inputs[0])
    if q is None:
        raise RefusedError("an operand is not quantized to 8 bits with one scale")
    axes = constant_array(node.inputs[1]) if len(node.inputs) > 1 else np.array(node.attributes.get_ints("axes", []))
    rank = len(node.inputs[0].shape or ()) if node.inputs[0] is not None else 0
    kept = node.attributes.get_int("keepdims", 1)
    if axes is None or rank != 4 or not kept or sorted(int(a) % 4 for a in axes.reshape(-1)) != [2, 3]:
        raise RefusedError("it reduces other axes than height and width")
    return [q]


def _geometry(node: ir.Node, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride and padding before."""
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean"):
        return (shape[2], shape[3]), (1, 1), (0, 0)
    kernel = tuple(node.attributes.get_ints("kernel_shape", []))
    stride = tuple(node.attributes.get_ints("strides", [1, 1]))
    y = static_shape(node.outputs[0])
    if y is None or len(kernel) != 2 or set(node.attributes.get_ints("dilations", [1, 1])) != {1}:
        raise RefusedError("its window is dilated, or not of two dimensions")
    pads = pads_before(node, shape[2:], y[2:], kernel, stride, (1, 1))
    if node.op_type == "AveragePool" and not node.attributes.get_int("count_include_pad", 0):
        reach = [(out - 1) * s + k for out, s, k in zip(y[2:], stride, kernel, strict=True)]
        if any(pads) or any(r > size for r, size in zip(reach, shape[2:], strict=True)):
            raise RefusedError("its means leave padding out: the vector unit divides by one number")
    return (kernel[0], kernel[1]), (stride[0], stride[1]), (pads[0], pads[1])
