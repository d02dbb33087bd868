"""Constant weights and biases behind DequantizeLinear."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, constant_array
from graphopt.packed import Packed, along, reshape

Array = np.ndarray[Any, Any]
BYTES, PACKED = "graphopt.bytes", "graphopt.packed"
LARGE = 1 << 13
"""Elements from which four bytes each count for more than making them of one at each run."""
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Weight(NamedTuple):
    """int8 values of zero point 0, and float32 scales: one, or one for each index of `axis`."""

    values: Array
    scale: Array
    axis: int


def weight_of(value: ir.Value | None) -> Weight | None:
    """The weight that `value` is, if it is that of a constant of 8 bits or fewer."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type != "DequantizeLinear":
        return None
    q, scale, zero = _constants(node)
    if q is None or scale is None or zero is None or q.dtype not in (np.int8, np.uint8) or scale.dtype != np.float32:
        return None
    axis = node.attributes.get_int("axis", 1)
    if node.attributes.get_int("block_size", 0) or scale.ndim > 1:
        return None
    values = q.astype(np.int16) - along(zero.astype(np.int16), q.ndim, axis)
    if values.min(initial=0) < -128 or values.max(initial=0) > 127:
        return None
    return Weight(values.astype(np.int8), scale.reshape(-1), axis % q.ndim)


def bias_of(value: ir.Value | None, unit: Array) -> Array | None:
    """A constant bias in steps of `unit` (float64, one for each channel), as int32; None if it isn't one or overflows.

    An int32 bias at that very scale is taken as it is.
    """
    if value is None:
        return np.zeros(unit.shape, np.int32)
    array, node = constant_array(value), value.producer()
    if array is None and node is not None and node.op_type == "DequantizeLinear":
        q, scale, zero = _constants(node)
        if q is None or scale is None or zero is None or np.any(zero):
            return None
        if q.dtype == np.int32 and q.shape == unit.shape and np.allclose(scale, unit, rtol=1e-5, atol=0):
            return q
        array = q.astype(np.float64) * scale
    if array is None or array.size not in (1, unit.size) or array.ndim > 2:
        return None
    steps = np.rint(np.broadcast_to(array.astype(np.float64).reshape(-1), unit.shape) / unit)
    return steps.astype(np.int32) if np.all(np.abs(steps) < 2**31) else None


def make_float(graph: ir.Graph, node: ir.Node) -> None:
    """Give a weighted `node` its constants as float32: what it needs to run as float."""
    for index, value in enumerate(node.inputs):
        found = None if constant_array(value) is not None else packed_constant(value)
        if value is not None and found is not None:
            real = add_constant(graph, f"{value.name}_float", found.array())
            real.meta[BYTES], real.meta[PACKED] = weight_of(value), found
            node.replace_input_with(index, real)


def bytes_of(value: ir.Value) -> Weight | None:
    """What `make_float` made `value` of, where that is large enough to be worth keeping instead."""
    weight = value.meta.get(BYTES)
    return weight if isinstance(weight, Weight) and weight.values.size >= LARGE else None


def float_constant(value: ir.Value | None) -> Array | None:
    """A constant, or what a DequantizeLinear (and a Reshape) makes of constants, as float32."""
    constant, found = constant_array(value), packed_constant(value)
    return constant if constant is not None or found is None else found.array()


def packed_constant(value: ir.Value | None) -> Packed | None:
    """What a float32 `value` is made of, where that is a DequantizeLinear of constants, or a Reshape of one."""
    producer = None if value is None else value.producer()
    if value is not None and producer is not None and producer.op_type == "Reshape" and producer.domain == "":
        inner = packed_constant(producer.inputs[0])
        static = value.shape is not None and value.shape.is_static()
        return inner.then([reshape(*value.shape.numpy())]) if inner and value.shape and static else None
    if producer is None or producer.op_type != "DequantizeLinear" or producer.domain != "":
        return None
    q, scale, zero = _constants(producer)
    if q is None or scale is None or zero is None or scale.dtype != np.float32:
        return None
    axis = producer.attributes.get_int("axis", 1) % max(1, q.ndim)
    return Packed(q, scale, zero, axis, producer.attributes.get_int("block_size", 0))


def packed_of(value: ir.Value) -> Packed | None:
    """What `make_float` made `value` of."""
    found = value.meta.get(PACKED)
    return found if isinstance(found, Packed) else None


def _constants(node: ir.Node) -> tuple[Array | None, Array | None, Array | None]:
    """The integers, scales and zero points of a DequantizeLinear of constants."""
    zero = np.zeros((), np.int8)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = constant_array(node.inputs[2])
    return constant_array(node.inputs[0]), constant_array(node.inputs[1]), zero
