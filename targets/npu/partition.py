"""Find what the array can compute in a quantized ONNX graph, and say of the rest why it can't.

A region is ``DequantizeLinear(x), DequantizeLinear(W)[, DequantizeLinear(b)] -> Conv | Gemm | MatMul
[-> Add(bias)] [-> Relu | Clip] -> QuantizeLinear``: it maps an 8-bit tensor to an 8-bit tensor. Where something else
comes before QuantizeLinear, or none comes, the region ends early and yields its int32 accumulators.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array, used_once
from graphopt.targets.npu.layer import Layer, Requantise
from graphopt.targets.npu.shapes import Operand, conv_geometry, gemm_geometry

Array = np.ndarray[Any, Any]
CANDIDATES = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose"})
EIGHT_BITS = {ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255)}
FOUR_BITS = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
NOT_QUANTIZED = "not quantized: add insert-qdq to the pipeline"


class RefusedError(Exception):
    """The reason why a node stays on the CPU."""


@dataclasses.dataclass(frozen=True)
class Region:
    """`nodes`, the anchor first, become one NPU node that reads the 8-bit tensor `source`."""

    anchor: ir.Node
    nodes: tuple[ir.Node, ...]
    source: ir.Value
    layer: Layer

    @property
    def result(self) -> ir.Value:
        """The value that the region computes: 8 bits after QuantizeLinear, else float."""
        return self.nodes[-1].outputs[0]


@dataclasses.dataclass(frozen=True)
class _Tail:
    """What follows the anchor: nodes that join it, bias, bounds of the activation, and QuantizeLinear if it comes."""

    nodes: tuple[ir.Node, ...]
    bias: ir.Value | None
    low: float
    high: float
    quantize: ir.Node | None


@dataclasses.dataclass(frozen=True)
class _Quantized:
    """A float value that is an 8-bit tensor dequantized: `value`, its scale, zero point and channel axis."""

    node: ir.Node
    value: ir.Value
    scale: Array
    zero: Array
    axis: int


def find_region(node: ir.Node) -> Region:
    """The region around the Conv, Gemm or MatMul `node`. Raises `RefusedError` with the reason."""
    if node.op_type == "ConvTranspose":
        raise RefusedError("the array has no transposed convolution")
    source, weights = _dequantized(node, 0, "its input"), _dequantized(node, 1, "its weights", FOUR_BITS)
    array = constant_array(weights.value)
    if array is None:
        raise RefusedError("both operands are computed at run time; the array takes constant weights")
    if weights.value.dtype in FOUR_BITS:
        array = array.astype(np.int8 if weights.value.dtype == ir.DataType.INT4 else np.uint8)
    if source.scale.size != 1:
        raise RefusedError("its input is quantized per channel")
    if np.unique(weights.zero.astype(np.int32)).size != 1:
        raise RefusedError("its weights have a zero point per channel")
    operand = Operand(array, weights.axis)
    rows, geometry = (conv_geometry if node.op_type == "Conv" else gemm_geometry)(node, operand)
    if isinstance(geometry, str):
        raise RefusedError(geometry)
    if _fits_four_bits(array):
        geometry = dataclasses.replace(geometry, weight_bits=4)
    weight_scale = _per_channel(weights.scale, len(rows), operand.channel_axis(node), weights.axis)
    tail = _tail(node)
    bias = _bias(tail.bias, len(rows), source.scale, weight_scale)
    accumulated = source.scale.reshape(-1).astype(np.float32) * weight_scale.astype(np.float32)
    if tail.quantize is None:
        geometry = dataclasses.replace(geometry, output_size=4)
        requantise = Requantise.none(accumulated)
    else:
        requantise = _requantise(tail, tail.quantize, accumulated)
    layer = Layer(
        name=node.name or node.op_type,
        op=node.op_type,
        geometry=geometry,
        weights=np.ascontiguousarray(rows),
        bias=bias,
        input_signed=source.value.dtype == ir.DataType.INT8,
        input_zero=int(source.zero.reshape(-1)[0]),
        weight_zero=int(weights.zero.reshape(-1)[0]),
        requantise=requantise,
    )
    return Region(node, (node, *tail.nodes), source.value, layer)


def _fits_four_bits(weights: Array) -> bool:
    """Whether each value is one of 4 bits, however it is stored."""
    low, high = (-8, 7) if weights.dtype == np.int8 else (0, 15)
    return bool(weights.size and low <= weights.min() and weights.max() <= high)


def _requantise(tail: _Tail, node: ir.Node, accumulated: Array) -> Requantise:
    """What QuantizeLinear `node` and the activation before it do to the accumulators' values."""
    scale, zeros = _parameters(node)
    if scale.size != 1:
        raise RefusedError("its output is quantized per channel")
    dtype = node.outputs[0].dtype
    if dtype is None or dtype not in EIGHT_BITS:
        raise RefusedError(f"its output is of type {dtype}, not 8 bits")
    step, zero = np.float32(scale.reshape(-1)[0]), int(zeros.reshape(-1)[0])
    low, high = EIGHT_BITS[dtype]
    return Requantise(
        multiplier=accumulated / step,
        signed=dtype == ir.DataType.INT8,
        zero=zero,
        low=min(max(low, _steps(tail.low, step) + zero), high),
        high=max(min(high, _steps(tail.high, step) + zero), low),
    )


def _steps(bound: float, step: np.float32) -> int:
    """An activation's bound in quantization steps: clamping before rounding equals clamping after."""
    return int(np.clip(np.rint(np.float32(bound) / step), -1024, 1024))


def _dequantized(anchor: ir.Node, index: int, what: str, also: frozenset[ir.DataType] = frozenset()) -> _Quantized:
    value = anchor.inputs[index]
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        raise RefusedError(f"{what} is not quantized" if _near_quantized(anchor) else NOT_QUANTIZED)
    if node.attributes.get_int("block_size", 0):
        raise RefusedError(f"{what} is quantized in blocks")
    quantized = node.inputs[0]
    if quantized is None or quantized.dtype is None or quantized.dtype not in {*EIGHT_BITS, *also}:
        raise RefusedError(f"{what} is of type {quantized.dtype if quantized is not None else None}, not 8 bits")
    scale, zero = _parameters(node)
    return _Quantized(node, quantized, scale, zero, node.attributes.get_int("axis", 1))


def _near_quantized(anchor: ir.Node) -> bool:
    """Whether `anchor` has a quantized operand at all: then the gap is at one operand."""
    producers = [value.producer() for value in anchor.inputs if value is not None]
    return any(node is not None and node.op_type == "DequantizeLinear" for node in producers)


def _parameters(node: ir.Node) -> tuple[Array, Array]:
    """Constant scale and zero point of a QuantizeLinear or DequantizeLinear."""
    scale = constant_array(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = np.zeros(1, np.int32) if given is None else constant_array(given)
    if scale is None or zero is None:
        raise RefusedError(f"scale or zero point of {node.name} is computed at run time")
    if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
        raise RefusedError(f"a scale of {node.name} is not positive")
    return scale, zero


def _tail(node: ir.Node) -> _Tail:
    """Follow the result of `node` to QuantizeLinear as far as the vector unit can."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    nodes: list[ir.Node] = []
    low, high = -np.inf, np.inf
    value = node.outputs[0]
    whole = _Tail((), bias, low, high, None)  # what there is in any case: the accumulators, dequantized on the CPU
    while used_once(value):
        user = next(iter(value.uses())).node
        if user.domain != "":
            break
        nodes.append(user)
        if user.op_type == "QuantizeLinear":
            return _Tail(tuple(nodes), bias, low, high, user)
        if user.op_type == "Add" and node.op_type == "MatMul" and bias is None and len(nodes) == 1:
            bias = user.inputs[1] if user.inputs[0] is value else user.inputs[0]
            if _constant(bias) is None:
                break
            whole = _Tail(tuple(nodes), bias, low, high, None)
        elif user.op_type == "Relu":
            low = max(low, 0.0)
        elif user.op_type == "Clip":
            low, high = max(low, _bound(user, 1, -np.inf)), min(high, _bound(user, 2, np.inf))
        else:
            break
        value = user.outputs[0]
    return whole


def _bound(node: ir.Node, index: int, default: float) -> float:
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        return default
    array = constant_array(value)
    if array is None:
        raise RefusedError(f"a bound of {node.name} is computed at run time")
    return float(array.reshape(-1)[0])


def _constant(value: ir.Value | None) -> tuple[Array, Array | None] | None:
    """A constant: its float values, or its int32 values and their scale where it is dequantized."""
    array = constant_array(value)
    if array is not None:
        return array, None
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or constant_array(node.inputs[0]) is None:
        return None
    scale, zero = _parameters(node)
    stored = constant_array(node.inputs[0])
    assert stored is not None
    return stored.astype(np.int64) - zero.astype(np.int64), scale


def _bias(value: ir.Value | None, channels: int, input_scale: Array, weight_scale: Array) -> Array:
    """int32 bias in units of s_x * s_w. A dequantized int32 bias of that scale is taken as it is, others rounded."""
    if value is None:
        return np.zeros(channels, np.int32)
    constant = _constant(value)
    if constant is None:
        raise RefusedError("its bias is computed at run time")
    stored, scale = constant
    if stored.size not in (1, channels) or (stored.ndim and stored.shape[-1] not in (1, channels)):
        raise RefusedError(f"its bias has shape {stored.shape}, not one value per channel")
    unit = (input_scale.astype(np.float64) * weight_scale.astype(np.float64)).reshape(-1)
    real = stored.astype(np.float64).reshape(-1) * (1.0 if scale is None else scale.astype(np.float64).reshape(-1))
    integer = np.rint(real / unit)
    if np.abs(integer).max() >= 2**31:
        raise RefusedError("its bias does not fit int32 in units of its input and weight scales")
    return np.broadcast_to(integer.astype(np.int32), channels).copy()


def _per_channel(scale: Array, channels: int, expected: int, axis: int) -> Array:
    if scale.size == 1:
        return np.broadcast_to(scale.reshape(-1), channels)
    if scale.shape != (channels,) or axis != expected:
        raise RefusedError("its weights are quantized along another axis than their output channels")
    return scale
