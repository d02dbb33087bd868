"""ONNX's integer operators as products of int8 by int8, which are what tensor cores take, summed in int32.

uint8 less 128 is int8, and so is its zero point. With what is in front of a product so::

    sum (a - z_a) (b - z_b) = sum a b  -  z_a sum b  -  z_b sum (a - z_a)

where the second sum is a constant if b is. A convolution's border counts as z_a, so it adds nothing: in its second sum
stand only the weights whose taps lie inside the image. So one constant is added to the product, with the bias in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.cuda.lowering.integer.borders import border_table, numbers, padding, taps_inside
from graphopt.targets.integer.signs import moved
from graphopt.targets.llvm.plan.integer.region import only_reader
from graphopt.targets.lowering.nodes import Attribute, constant, number, put, take_place
from graphopt.targets.lowering.origins import MACS, does_arithmetic_of
from graphopt.targets.lowering.qlinear import operand
from graphopt.targets.lowering.support import BORDER, CONV, MATMUL, NARROW

Array = np.ndarray[Any, Any]
F, I8, I32, U8 = ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.INT32, ir.DataType.UINT8
Zero = int | ir.Value
"""A zero point: known, or an int32 scalar."""


def expand(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place; what has no such form stays as it is."""
    for node in list(model.graph):
        if node.domain != "":
            continue
        match node.op_type:
            case "ConvInteger":
                _convolution(node)
            case "MatMulInteger":
                _matmul(node)
            case "QuantizeLinear":
                _quantize(node)
            case "DequantizeLinear":
                _dequantize(node)
            case _:
                pass


def _matmul(node: ir.Node) -> None:
    a, b = node.inputs[0], node.inputs[1]
    if a is None or b is None or a.shape is None or b.shape is None or min(len(a.shape), len(b.shape)) < 2:
        return
    if not all(map(_is_number, (operand(node, 2), operand(node, 3)))):
        return
    (left, z_a), (right, z_b) = (_signed(node, index) for index in (0, 1))
    acc = _product(node, MATMUL, left, right, {})
    known = constant_array(right)
    if known is not None and isinstance(z_a, int) and z_b == 0:
        _finish(node, acc, (-z_a * known.sum(axis=-2, dtype=np.int64)).astype(np.int32) if z_a else None)
        return
    if z_a != 0:
        acc = _less(node, acc, z_a, _sum(node, right, -2))
    if z_b != 0:
        acc = _less(node, acc, z_b, _sum(node, _difference(node, left, z_a), -1))
    take_place(node, acc)


def _is_number(zero: ir.Value | None) -> bool:
    """Not one for each row or column."""
    return zero is None or zero.shape in (ir.Shape([]), ir.Shape([1]))


def _convolution(node: ir.Node) -> None:
    x, w = node.inputs[0], constant_array(node.inputs[1])
    zero_w = np.zeros((), np.int8) if operand(node, 3) is None else constant_array(node.inputs[3])
    if x is None or w is None or zero_w is None or x.shape is None or node.outputs[0].shape is None:
        return
    if not _is_number(operand(node, 2)):
        return
    values = w.astype(np.int16) - zero_w.astype(np.int16).reshape(-1, *[1] * (w.ndim - 1))
    if values.min(initial=0) < -128 or values.max(initial=0) > 127:
        return
    weights, pads = values.astype(np.int8), padding(node, w.shape[2:])
    if pads is None:
        return
    left, z_x = _signed(node, 0)
    rank = w.ndim - 2
    if rank == 2 and any(pads) and isinstance(z_x, int) and z_x:
        acc = _product(node, CONV, left, constant(node, "int8", weights), _geometry(node, rank, pads))
        _finish(node, acc, (-z_x * border_table(node, weights, pads)).astype(np.int32), BORDER)
        return
    table = taps_inside(node, weights, pads)
    if table is None and not isinstance(z_x, int):
        return
    if table is None and z_x:
        left = _padded(node, left, z_x, pads)
        pads = [0] * len(pads)
        table = taps_inside(node, weights, pads)
    acc = _product(node, CONV, left, constant(node, "int8", weights), _geometry(node, rank, pads))
    if isinstance(z_x, int):
        _finish(node, acc, (-z_x * table).astype(np.int32) if z_x and table is not None else None)
    elif table is not None:
        take_place(node, _less(node, acc, z_x, constant(node, "inside", table.astype(np.int32))))


def _geometry(node: ir.Node, rank: int, pads: Sequence[int]) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {name: numbers(node, name, rank) for name in ("strides", "dilations")}
    return {**found, "pads": pads, "group": node.attributes.get_int("group", 1)}


def _padded(node: ir.Node, x: ir.Value, zero: Zero, pads: list[int]) -> ir.Value:
    """`x` with a border of zero points, for images of open size."""
    half = len(pads) // 2
    widths = constant(node, "pads", np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64))
    return put(node, "Pad", [x, widths, constant(node, "border", np.array(zero, np.int8))], dtype=I8)


def _product(
    node: ir.Node, kind: tuple[str, str], left: ir.Value, right: ir.Value, attributes: Mapping[str, Attribute]
) -> ir.Value:
    acc = put(node, kind[1], [left, right], attributes, domain=kind[0], dtype=I32, like=node.outputs[0])
    made = acc.producer()
    assert made is not None
    if MACS in node.metadata_props:
        made.metadata_props[MACS] = node.metadata_props[MACS]
    else:
        does_arithmetic_of(made, [node])
    return acc


def _signed(node: ir.Node, index: int) -> tuple[ir.Value, Zero]:
    """An 8-bit operand as int8, and its zero point."""
    value, zero = node.inputs[index], operand(node, index + 2)
    assert value is not None
    known = np.zeros((), np.int32) if zero is None else constant_array(zero)
    shift = 128 if value.dtype == U8 else 0
    array = constant_array(value)
    if array is not None:
        left = constant(node, "int8", moved(array, I8)) if shift else value
    else:
        left = _cast(node, _less_number(node, _cast(node, value, I32), shift), I8) if shift else value
    if known is not None:
        return left, int(known.reshape(-1)[0]) - shift
    assert zero is not None
    return left, _less_number(node, _cast(node, zero, I32), shift)


def _finish(node: ir.Node, acc: ir.Value, correction: Array | None, kind: tuple[str, str] = ("", "Add")) -> None:
    """Add what is constant, together with the bias that follows, by the operator `kind`."""
    if correction is None:
        take_place(node, acc)
        return
    reader, bias = only_reader(node.outputs[0]), None
    if reader is not None and reader.op_type == "Add" and reader.domain == "":
        bias = next((array for v in reader.inputs if (array := constant_array(v)) is not None), None)
    with np.errstate(over="ignore"):
        total = correction if bias is None else np.asarray(bias + correction, np.int32)
    added = put(node, kind[1], [acc, constant(node, "bias", total)], domain=kind[0], dtype=I32, like=acc)
    take_place(node if reader is None or bias is None else reader, added)


def _less(at: ir.Node, acc: ir.Value, zero: Zero, sums: ir.Value) -> ir.Value:
    """``acc - zero * sums``."""
    factor = constant(at, "zero", np.array(zero, np.int32)) if isinstance(zero, int) else zero
    return put(at, "Sub", [acc, put(at, "Mul", [factor, sums], dtype=I32, like=sums)], dtype=I32, like=acc)


def _sum(at: ir.Node, value: ir.Value, axis: int) -> ir.Value:
    """int32 sums along `axis`, which stays with size 1."""
    known = constant_array(value)
    if known is not None:
        return constant(at, "sums", known.sum(axis=axis, keepdims=True, dtype=np.int64).astype(np.int32))
    axes = constant(at, "axes", np.array([axis], np.int64))
    result = put(at, "ReduceSum", [_cast(at, value, I32), axes], {"keepdims": 1}, dtype=I32)
    dims = list(value.shape or ())
    dims[axis] = 1
    result.shape = ir.Shape(dims)
    return result


def _difference(at: ir.Node, value: ir.Value, zero: Zero) -> ir.Value:
    wide = _cast(at, value, I32)
    if isinstance(zero, int):
        return _less_number(at, wide, zero)
    return put(at, "Sub", [wide, zero], dtype=I32, like=value)


def _less_number(at: ir.Node, value: ir.Value, less: int) -> ir.Value:
    """int32 `value` less a number."""
    if not less:
        return value
    return put(at, "Sub", [value, constant(at, "number", np.array(less, np.int32))], dtype=I32, like=value)


def _cast(at: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    return value if value.dtype == dtype else put(at, "Cast", [value], {"to": int(dtype)}, dtype=dtype, like=value)


def _quantize(node: ir.Node) -> None:
    """``clamp(rint(x / scale) + zero, low, high)``; scale and zero point stay tensors: so layers can share kernels."""
    x, y, found = node.inputs[0], node.outputs[0], _numbers(node)
    if x is None or x.dtype != F or found is None or y.dtype is None or y.dtype not in (I8, U8):
        return
    scale, zero = found
    limits = np.iinfo(y.dtype.numpy())
    steps = x if scale == 1.0 else put(node, "Div", [x, number(node, scale)], dtype=F, like=x)
    steps = put(node, "Round", [steps], dtype=F, like=x)
    if zero:
        steps = put(node, "Add", [steps, number(node, zero)], dtype=F, like=x)
    bounds = [number(node, bound) for bound in (limits.min, limits.max)]
    inside = put(node, "Clip", [steps, *bounds], dtype=F, like=x)
    take_place(node, put(node, NARROW[1], [inside], {"to": int(y.dtype)}, domain=NARROW[0], dtype=y.dtype, like=x))


def _dequantize(node: ir.Node) -> None:
    """``(q - zero) * scale``."""
    q, found = node.inputs[0], _numbers(node)
    if q is None or q.dtype not in (I8, U8) or found is None or constant_array(q) is not None:
        return
    scale, zero = found
    real = _cast(node, q, F)
    if zero:
        real = put(node, "Sub", [real, number(node, zero)], dtype=F, like=q)
    take_place(node, real if scale == 1.0 else put(node, "Mul", [real, number(node, scale)], dtype=F, like=q))


def _numbers(node: ir.Node) -> tuple[float, int] | None:
    """The scale and zero point of a (de)quantizer that has one of each, known."""
    scale, zero = constant_array(node.inputs[1]), np.zeros((), np.int32)
    if operand(node, 2) is not None:
        zero = constant_array(node.inputs[2])
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or scale.dtype != np.float32:
        return None
    return float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])
