"""What the NPU could compute: a candidate, and the 8-bit values it reads and yields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.npu.partition import RefusedError
from graphopt.targets.npu.program import Op, Quantum, Shape, View
from graphopt.targets.npu.shapes import OPEN, static_shape

Array = np.ndarray[Any, Any]
Views = Sequence[View]


class Quantized(NamedTuple):
    """An 8-bit value, its scale and how its bytes are read."""

    value: ir.Value
    scale: np.float32
    quantum: Quantum


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """`nodes` compute the 8-bit (or raw) `result` of 8-bit `sources`; `ops` are what the NPU does for it."""

    anchor: ir.Node
    nodes: tuple[ir.Node, ...]
    sources: tuple[ir.Value, ...]
    result: ir.Value
    ops: Callable[[Views, View], list[Op]]
    macs: int = 0
    unit: Array | None = None  # of raw results: what one accumulator's unit is worth
    moved: bool = False  # the bytes stay what they are: another shape

    @property
    def name(self) -> str:
        """Of the anchor."""
        return str(self.anchor.name)


def shape_of(value: ir.Value) -> Shape:
    """(batch, channels, height, width) of a tensor: a matrix is one plane, a sequence has height 1."""
    shape = static_shape(value)
    if shape is None:
        raise RefusedError(OPEN)
    match shape:
        case (n, c, h, w):
            return n, c, h, w
        case (n, c, w):
            return n, c, 1, w
        case _:
            return 1, 1, math.prod(shape[:-1]), shape[-1] if shape else 1


def reshaped(view: View, shape: Shape) -> View:
    """The same bytes in another shape."""
    return view if view.shape == shape else View(view.tensor, shape, view.first)


def dequantized(value: ir.Value | None) -> Quantized | None:
    """What `value` is DequantizeLinear of, if that is a computed 8-bit value with one scale."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    return None if constant_array(node.inputs[0]) is not None else _quantized(node, node.inputs[0])


def quantized(node: ir.Node) -> Quantized | None:
    """What a QuantizeLinear yields, if that is 8 bits with one scale."""
    return _quantized(node, node.outputs[0]) if node.domain == "" and node.op_type == "QuantizeLinear" else None


def _quantized(node: ir.Node, value: ir.Value) -> Quantized | None:
    scale = constant_array(node.inputs[1])
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if value.dtype not in (ir.DataType.INT8, ir.DataType.UINT8) or scale is None or zero is None:
        return None
    if scale.size != 1 or zero.size != 1 or scale.dtype != np.float32 or not 0 < float(scale.reshape(-1)[0]) < np.inf:
        return None
    signed = value.dtype == ir.DataType.INT8
    low, high = (-128, 127) if signed else (0, 255)
    return Quantized(value, np.float32(scale.reshape(-1)[0]), Quantum(signed, int(zero.reshape(-1)[0]), low, high))


def sources_of(node: ir.Node) -> list[Quantized]:
    """The 8-bit values that all inputs of `node` are. Raises `RefusedError` where one is none."""
    found = [dequantized(value) for value in node.inputs]
    known = [q for q in found if q is not None]
    if len(known) < len(found):
        raise RefusedError("an operand is not quantized to 8 bits with one scale")
    return known


def producer_of(value: ir.Value) -> ir.Node:
    """The node that yields `value`. Raises `RefusedError` for an input of the model."""
    node = value.producer()
    if node is None:
        raise RefusedError("it quantizes an input of the model")
    return node


def clamped(behind: Sequence[ir.Node], result: Quantized) -> Quantum:
    """The range that Relu and Clip leave of 8 bits."""
    q = result.quantum
    low, high = q.low, q.high
    for node in behind:
        bounds = [0.0, np.inf] if node.op_type == "Relu" else [-np.inf, np.inf]
        for index, given in enumerate(node.inputs[1:3]):
            array = constant_array(given) if given is not None else None
            if given is not None and array is None:
                raise RefusedError(f"a bound of {node.name} is computed at run time")
            bounds[index] = bounds[index] if array is None else float(array.reshape(-1)[0])
        with np.errstate(over="ignore"):
            least, most = (np.clip(np.rint(np.float32(b) / result.scale), -1024, 1024) + q.zero for b in bounds)
        low, high = int(max(low, min(least, q.high))), int(min(high, max(most, q.low)))
    return dataclasses.replace(q, low=min(low, high), high=high)


def requantised(x: Quantized, y: Quantized) -> Array:
    """The table from the bytes of `x` to those of `y`: QuantizeLinear of DequantizeLinear in float32."""
    dtype = np.int8 if x.quantum.signed else np.uint8
    steps = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32) - np.float32(x.quantum.zero)
    rounded = np.rint(steps * x.scale / y.scale) + np.float32(y.quantum.zero)
    out = np.clip(rounded, y.quantum.low, y.quantum.high)
    return out.astype(np.int8 if y.quantum.signed else np.uint8).view(np.uint8)
