"""The geometry of Conv, Gemm and MatMul, and their weights as rows, one per output channel."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.targets.npu.layer import Geometry

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Operand:
    """Constant weights and the axis their scales run along."""

    array: Array
    axis: int

    def channel_axis(self, node: ir.Node) -> int:
        """The axis of output channels, in the sign convention of `axis`."""
        if node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0)):
            axis = 0
        else:
            axis = self.array.ndim - 1
        return axis - self.array.ndim if self.axis < 0 else axis


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape, or None where a dimension is open or not known."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(dim) for dim in value.shape.numpy())


OPEN = "its shape is open: fix the model's symbolic dimensions (--dim N=1)"


def conv_geometry(node: ir.Node, weights: Operand) -> tuple[Array, Geometry | str]:
    """Weights of shape (channels, cin*kh*kw) and the geometry, or the reason there is none."""
    array = weights.array
    rows = array.reshape(array.shape[0], -1)
    x, y = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    if x is None or y is None:
        return rows, OPEN
    if array.ndim not in (3, 4):
        return rows, f"it is a convolution over {array.ndim - 2} dimensions; the array has windows of one or two"
    rank = array.ndim - 2
    groups = node.attributes.get_int("group", 1)
    strides, dilations = _ints(node, "strides", rank), _ints(node, "dilations", rank)
    kernel = tuple(int(size) for size in array.shape[2:])
    pads = pads_before(node, x[2:], y[2:], kernel, strides, dilations)
    channels, cin = int(array.shape[0]), int(array.shape[1])
    (ih, iw), (oh, ow), (kh, kw) = _two(x[2:], 1), _two(y[2:], 1), _two(kernel, 1)
    geometry = Geometry(
        *(x[0], groups, cin, channels // groups, ih, iw, oh, ow, kh, kw),
        stride=_two(strides, 1),
        dilation=_two(dilations, 1),
        pad=_two(pads, 0),
    )
    return rows, geometry


def gemm_geometry(node: ir.Node, weights: Operand) -> tuple[Array, Geometry | str]:
    """Weights of shape (n, k) and the geometry of the (m, k) by (k, n) product, or the reason there is none."""
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0)
    rows = weights.array if transposed else weights.array.T
    x = static_shape(node.inputs[0])
    if x is None:
        return rows, OPEN
    if weights.array.ndim != 2:
        return rows, f"its weights have {weights.array.ndim} dimensions; the array takes a matrix"
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    if node.attributes.get_int("transA", 0) or alpha != 1.0 or beta != 1.0:
        return rows, "it transposes its input or scales its operands (transA, alpha, beta)"
    m = math.prod(x[:-1])
    n, k = (int(size) for size in rows.shape)
    return rows, Geometry(1, 1, k, n, 1, m, 1, m, channels_last=True)


def _ints(node: ir.Node, name: str, rank: int) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints(name, [1] * rank))


def _two(sizes: tuple[int, ...], missing: int) -> tuple[int, int]:
    """Height and width; a one-dimensional convolution has height 1."""
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (missing, sizes[0])


def pads_before(
    node: ir.Node,
    x: tuple[int, ...],
    y: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[int, ...]:
    """Padding before the first element of each axis; what comes after follows from the output's size."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    rank = len(kernel)
    if mode == "VALID":
        return (0,) * rank
    if mode == "NOTSET":
        return tuple(node.attributes.get_ints("pads", [0] * 2 * rank))[:rank]
    sizes = zip(x, y, kernel, strides, dilations, strict=True)
    total = [max((out - 1) * stride + (k - 1) * dilation + 1 - size, 0) for size, out, k, stride, dilation in sizes]
    return tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total)
