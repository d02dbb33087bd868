"""What no kernel of the target has taken of the quantized operators that the importer lacks, in operators that it has.

ConvInteger, DynamicQuantizeLinear, and Quantize-/DequantizeLinear of blocks, 4 or 16 bits, and of float8 constants.
Integers of 4 bits are held in 8 from here on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.lowering.nodes import Attribute, constant, flat, number, put, take_place
from graphopt.targets.lowering.qlinear import operand
from graphopt.targets.lowering.small_types import FLOAT8, as_float, from_float, hold_small_types

F, I32, I64 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64
WIDER = {ir.DataType.INT4: ir.DataType.INT8, ir.DataType.UINT4: ir.DataType.UINT8}
BOUNDS = {
    **{dtype: (int(np.iinfo(dtype.numpy()).min), int(np.iinfo(dtype.numpy()).max))
       for dtype in (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)},
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
}  # fmt: skip


def expand_integer_ops(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place, after the target's own planning."""
    for node in list(model.graph):
        rewrite = _REWRITES.get(node.op_type) if node.domain in ("", "graphopt") else None
        if rewrite is not None and rewrite(node):
            model.graph.remove(node, safe=True)
    hold_small_types(model)


def expand_dynamic(model: ir.Model) -> bool:
    """Rewrite every DynamicQuantizeLinear of the main graph in place; says whether there was one."""
    found = [node for node in model.graph if node.domain == "" and node.op_type == "DynamicQuantizeLinear"]
    for node in found:
        _dynamic(node)
        model.graph.remove(node, safe=True)
    return bool(found)


def _conv_integer(node: ir.Node) -> bool:
    """In int32: Conv of the differences from the zero points."""
    x, w = (_difference(node, index, index + 2) for index in (0, 1))
    attributes = {k: v.value for k, v in node.attributes.items()}
    take_place(node, put(node, "Conv", [x, w], attributes, dtype=I32, like=node.outputs[0]))
    return True


def _difference(node: ir.Node, index: int, zero_index: int) -> ir.Value:
    """An input less its zero point, int32; a vector of zero points goes along the first axis."""
    value, zero = node.inputs[index], operand(node, zero_index)
    assert value is not None
    rank = 1 if value.shape is None else len(value.shape)
    known, known_zero = constant_array(value), np.zeros(()) if zero is None else constant_array(zero)
    if known is not None and known_zero is not None:
        zeros = known_zero.reshape(-1, *[1] * (rank - 1)) if known_zero.size > 1 else known_zero.reshape(())
        return constant(node, "integers", known.astype(np.int32) - zeros.astype(np.int32))
    wide = _cast(node, value, I32)
    if zero is None:
        return wide
    zero = _cast(node, flat(node, zero), I32)
    if zero.shape is not None and len(zero.shape) == 1:
        zero = put(node, "Reshape", [zero, constant(node, "shape", np.array([-1, *[1] * (rank - 1)]))], dtype=I32)
    return put(node, "Sub", [wide, zero], dtype=I32, like=value)


def _cast(at: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    array = constant_array(value)
    if array is not None:
        return constant(at, "as_" + dtype.name.lower(), array.astype(dtype.numpy()))
    return value if value.dtype == dtype else put(at, "Cast", [value], {"to": int(dtype)}, dtype=dtype, like=value)


def _dynamic(node: ir.Node) -> bool:
    """``low, high = min(x, 0), max(x, 0); s = (high - low) / 255, z = rint(clip(0 - low / s))``; s is 1 where x is 0.

    (ONNX's definition divides by zero where x is; onnxruntime has this.)
    """
    x = node.inputs[0]

    def scalar(op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        result = put(node, op, inputs, attributes, dtype=F)
        result.shape = ir.Shape([])
        return result

    assert x is not None
    nil = number(node, 0)
    low = scalar("Min", scalar("ReduceMin", _by_rows(node, "ReduceMin", x), keepdims=0), nil)
    high = scalar("Max", scalar("ReduceMax", _by_rows(node, "ReduceMax", x), keepdims=0), nil)
    step = scalar("Div", scalar("Sub", high, low), number(node, 255))
    empty = put(node, "Equal", [high, low], dtype=ir.DataType.BOOL, like=low)
    step = scalar("Where", empty, number(node, 1), step)
    zero = scalar("Round", scalar("Clip", scalar("Sub", nil, scalar("Div", low, step)), nil, number(node, 255)))
    zero = put(node, "Cast", [zero], {"to": int(ir.DataType.UINT8)}, dtype=ir.DataType.UINT8, like=zero)
    results = [put(node, "QuantizeLinear", [x, step, zero], dtype=ir.DataType.UINT8, like=x), step, zero]
    for index, result in enumerate(results):
        take_place(node, result, index)
    return True


def _by_rows(at: ir.Node, op: str, x: ir.Value) -> ir.Value:
    """The extreme of each row: kernels reduce rows, and what is left to reduce is small."""
    if x.shape is None or len(x.shape) < 2 or not isinstance(x.shape[-1], int):
        return x
    assert isinstance(at.graph, ir.Graph)
    axis, as_input = len(x.shape) - 1, at.graph.opset_imports.get("", 1) >= 18
    inputs = [x, constant(at, "axes", np.array([axis]))] if as_input else [x]
    attributes: dict[str, Attribute] = {"keepdims": 0} if as_input else {"keepdims": 0, "axes": [axis]}
    result = put(at, op, inputs, attributes, dtype=F)
    result.shape = ir.Shape(list(x.shape)[:-1])
    return result


def _quantize(node: ir.Node) -> bool:
    """``saturate(rint(x / s) + z)``, where TVM's QuantizeLinear has no such type or no blocks."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    if y.dtype in FLOAT8 and x.dtype == F:
        return _to_float8(node, x, y)
    if y.dtype is None or y.dtype not in BOUNDS or not _unknown_to_tvm(node, y.dtype):
        return False
    low, high = BOUNDS[y.dtype]
    steps = put(node, "Round", [put(node, "Div", [x, _spread(node, 1, x)], dtype=F, like=x)], dtype=F, like=x)
    if operand(node, 2) is not None:
        steps = put(node, "Add", [steps, _spread(node, 2, x)], dtype=F, like=x)
    inside = put(node, "Clip", [steps, number(node, low), number(node, high)], dtype=F, like=x)
    take_place(node, _cast(node, inside, WIDER.get(y.dtype, y.dtype)))
    return True


def _dequantize(node: ir.Node) -> bool:
    """``(q - z) * s``, where TVM's DequantizeLinear has no such type or no blocks."""
    q = node.inputs[0]
    assert q is not None
    if q.dtype in FLOAT8:
        return _from_float8(node, q)
    if q.dtype is None or q.dtype not in BOUNDS or not _unknown_to_tvm(node, q.dtype):
        return False
    real = put(node, "Cast", [q], {"to": int(F)}, dtype=F, like=q)
    if operand(node, 2) is not None:
        real = put(node, "Sub", [real, _spread(node, 2, q)], dtype=F, like=q)
    take_place(node, put(node, "Mul", [real, _spread(node, 1, q)], dtype=F, like=q))
    return True


def _from_float8(node: ir.Node, q: ir.Value) -> bool:
    """Bytes look their values up in a table."""
    codes = constant_array(q)
    if operand(node, 2) is not None and constant_array(node.inputs[2]) is None:
        return False
    if codes is None:
        real = put(node, "Mul", [as_float(node, q), _cast(node, _spread(node, 1, q), F)], dtype=F, like=q)
        take_place(node, _cast(node, real, node.outputs[0].dtype or F))
        return True
    table = np.arange(256, dtype=np.uint8).view(codes.dtype).astype(np.float32)
    indices = _cast_of_constant(node, codes.view(np.uint8))
    real = put(node, "Gather", [constant(node, "values", table), indices], dtype=F, like=q)
    take_place(node, put(node, "Mul", [real, _spread(node, 1, q)], dtype=F, like=q))
    return True


def _to_float8(node: ir.Node, x: ir.Value, y: ir.Value) -> bool:
    assert y.dtype is not None
    steps = put(node, "Div", [x, _spread(node, 1, x)], dtype=F, like=x)
    coded = from_float(node, steps, y.dtype, node.attributes.get_int("saturate", 1) != 0)
    take_place(node, put(node, "Identity", [coded], dtype=y.dtype, like=y))
    return True


def _cast_of_constant(node: ir.Node, array: np.ndarray) -> ir.Value:
    """Cast at run time: the constant stays small."""
    return put(node, "Cast", [constant(node, "codes", array)], {"to": int(I32)}, dtype=I32)


def _unknown_to_tvm(node: ir.Node, dtype: ir.DataType) -> bool:
    blocked = node.attributes.get_int("block_size", 0) != 0
    return node.domain != "" or blocked or dtype not in (ir.DataType.INT8, ir.DataType.UINT8)


def _spread(node: ir.Node, index: int, data: ir.Value) -> ir.Value:
    """The scale (1) or zero point (2) of a (de)quantizer as float, so that it broadcasts against its data."""
    value, axis = node.inputs[index], node.attributes.get_int("axis", 1)
    assert value is not None
    assert data.shape is not None
    rank, block = len(data.shape), node.attributes.get_int("block_size", 0)
    value = flat(node, value) if not block else value
    array = constant_array(value)
    if index == 2:  # a constant stays small
        value = put(node, "Cast", [value], {"to": int(F)}, dtype=F, like=value) if block else _cast(node, value, F)
    if block:
        size = data.shape[axis]
        positions = np.arange(size if isinstance(size, int) else 0) // block
        return put(node, "Gather", [value, constant(node, "blocks", positions)], {"axis": axis}, dtype=F, like=data)
    if array is not None and array.ndim == 0:
        return value
    if value.shape is not None and len(value.shape) == 0:
        return value
    dims = np.array([-1 if a == axis % rank else 1 for a in range(rank)], np.int64)
    return put(node, "Reshape", [value, constant(node, "shape", dims)], dtype=F)


_REWRITES: dict[str, Callable[[ir.Node], bool]] = {
    "ConvInteger": _conv_integer,
    "DynamicQuantizeLinear": _dynamic,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
