"""Reading a region that is one affine layer: Conv, Gemm or MatMul with constant weights, and a constant Add after."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.passes.distil.region import Region
from graphopt.passes.distil.student import Layer, UnsupportedError

Array: TypeAlias = np.ndarray[Any, Any]
_CONV_ATTRIBUTES = ("strides", "pads", "dilations", "auto_pad")


@dataclasses.dataclass(frozen=True)
class Affine:
    """``y[o] = sum_j weight[o, j] patch(x)[j] + bias[o]`` at each output position.

    `weight`: float64 (Cout, Cin, *kernel), without kernel for Gemm and MatMul. `bias`: float64 (Cout,).
    """

    node: ir.Node
    weight: Array
    bias: Array

    @property
    def is_conv(self) -> bool:
        """Channels are axis 1 (Conv); else they are the last axis."""
        return self.node.op_type == "Conv"

    @property
    def matrix(self) -> Array:
        """The weight as (Cout, Cin * kernel)."""
        return self.weight.reshape(self.weight.shape[0], -1)

    @property
    def axis(self) -> int:
        """The axis of the output that holds the channels."""
        return 1 if self.is_conv else -1

    def window(self) -> dict[str, Any]:
        """The attributes of the Conv that say where its window goes."""
        return {name: self.node.attributes[name].value for name in _CONV_ATTRIBUTES if name in self.node.attributes}

    def pointwise(self, matrix: Array, bias: Array | None) -> list[Layer]:
        """Layers for ``y[o] = sum_j matrix[o, j] x[j] + bias[o]`` at each position, in this node's own form."""
        return pointwise_layers(self.node.op_type, self.weight.ndim, matrix, bias)


def positions(values: Array, axis: int) -> Array:
    """An activation as (positions, channels), with `axis` the one of the channels."""
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def pointwise_layers(form: str, rank: int, matrix: Array, bias: Array | None) -> list[Layer]:
    """``y = matrix x + bias`` at each position as a 1 x 1 Conv on `rank` axes, a Gemm, or a MatMul and an Add."""
    if form == "Conv":
        kernel = matrix.reshape(*matrix.shape, *[1] * (rank - 2))
        return [Layer("Conv", (kernel,) if bias is None else (kernel, bias))]
    if form == "Gemm":
        return [Layer("Gemm", (matrix.T,) if bias is None else (matrix.T, bias))]
    return [Layer("MatMul", (matrix.T,)), *([] if bias is None else [Layer("Add", (bias,))])]


def read_affine(region: Region) -> Affine:
    """The one affine layer that `region` is. Raises `UnsupportedError` saying what else it holds."""
    head, *rest = region.nodes
    if head.op_type not in ("Conv", "Gemm", "MatMul") or head.domain or len(rest) > 1:
        raise UnsupportedError(
            f"it is not a single Conv, Gemm or MatMul but {', '.join(n.op_type for n in region.nodes)}"
        )
    if region.inputs[0].dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        raise UnsupportedError(f"its input is {region.inputs[0].dtype}, not a float")
    if head.inputs[0] is not region.inputs[0]:
        raise UnsupportedError("its first operand is the constant one")
    teacher = _conv(head) if head.op_type == "Conv" else _matmul(head)
    if not rest:
        return teacher
    if rest[0].op_type != "Add":
        raise UnsupportedError(f"{head.op_type} is followed by {rest[0].op_type}, not by a constant Add")
    rank = None if head.outputs[0].shape is None else len(head.outputs[0].shape)
    other = [value for value in rest[0].inputs if value is not head.outputs[0]]
    axis = 1 if teacher.is_conv else -1
    shift = per_channel(other[0] if other else None, rank, axis, len(teacher.bias))
    return dataclasses.replace(teacher, bias=teacher.bias + shift)


def per_channel(value: ir.Value | None, rank: int | None, axis: int, channels: int) -> Array:
    """A constant that is broadcast over all but the channel axis, as float64 (channels,)."""
    array = constant_array(value)
    if array is None:
        raise UnsupportedError(f"`{value.name if value else 'an operand'}` is not constant")
    if rank is None or array.ndim > rank:
        raise UnsupportedError(f"a constant of rank {array.ndim} meets a value of rank {rank}")
    if array.size == 1:
        return np.full(channels, float(array.reshape(())), np.float64)
    full = (1,) * (rank - array.ndim) + array.shape
    if array.size != channels or full[axis] != channels:
        raise UnsupportedError(f"a constant of shape {list(array.shape)} is not one number per channel")
    return array.reshape(channels).astype(np.float64)


def _conv(node: ir.Node) -> Affine:
    weight = constant_array(node.inputs[1])
    if weight is None:
        raise UnsupportedError("its weight is not constant")
    if node.attributes.get_int("group", 1) != 1:
        raise UnsupportedError("it is a grouped convolution")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    shift = np.zeros(len(weight)) if bias is None else per_channel(bias, 1, 0, len(weight))
    return Affine(node, weight.astype(np.float64), shift)


def _matmul(node: ir.Node) -> Affine:
    weight = constant_array(node.inputs[1])
    if weight is None or weight.ndim != 2:
        raise UnsupportedError("its second operand is not a constant matrix")
    weight = weight.astype(np.float64)
    shift = np.zeros(weight.shape[1])
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0):
            raise UnsupportedError("transA=1: its channels are not the last axis")
        weight = weight.T if node.attributes.get_int("transB", 0) else weight
        weight = weight * node.attributes.get_float("alpha", 1.0)
        shift = np.zeros(weight.shape[1])
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            shift = per_channel(node.inputs[2], 2, -1, weight.shape[1]) * node.attributes.get_float("beta", 1.0)
    return Affine(node, weight.T, shift)


def patches(x: Array, teacher: Affine) -> Array:
    """What each output position of a Conv sees: ``(positions, Cin * prod(kernel))``, padding included (im2col)."""
    kernel = teacher.weight.shape[2:]
    window = teacher.window()
    strides = tuple(window.get("strides", (1,) * len(kernel)))
    dilations = tuple(window.get("dilations", (1,) * len(kernel)))
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    before, after = _padding(window, x.shape[2:], strides, reach)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    axes = tuple(range(2, x.ndim))
    seen = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    steps = tuple(slice(None, None, s) for s in strides) + tuple(slice(None, None, d) for d in dilations)
    seen = seen[(slice(None), slice(None), *steps)]
    return np.moveaxis(seen, 1, 1 + len(kernel)).reshape(-1, x.shape[1] * math.prod(kernel))


def _padding(
    window: dict[str, Any], sizes: tuple[int, ...], strides: tuple[int, ...], reach: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """Zeros before and after each spatial axis; SAME_* per the ONNX text: ``out = ceil(in / stride)``."""
    rank, auto = len(reach), window.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = list(window.get("pads", [0] * (2 * rank)))
        return pads[:rank], pads[rank:]
    if auto == "VALID":
        return [0] * rank, [0] * rank
    total = [max((math.ceil(n / s) - 1) * s + r - n, 0) for n, s, r in zip(sizes, strides, reach, strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if auto == "SAME_UPPER" else (large, small)
