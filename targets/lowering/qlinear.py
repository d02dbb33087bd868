"""Quantized operators of ONNX and of onnxruntime's domain, written as QuantizeLinear, DequantizeLinear and float ones.

::

    QLinearConv(x, sx, zx, w, sw, zw, sy, zy, b)
        = QuantizeLinear(Conv(DequantizeLinear(x, sx, zx), DequantizeLinear(w, sw, zw), DequantizeLinear(b, sx * sw)),
                         sy, zy)

and so on: the one form that passes and targets look for. Computed in float this differs from the integer operator by
at most one step of the result, where a value falls next to the middle between two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.lowering.nodes import Attribute, constant, flat, number, put, take_place

MICROSOFT = "com.microsoft"


def to_qdq(model: ir.Model) -> bool:
    """Rewrite every quantized operator of the main graph that has such a form, in place; says whether one had.

    Not those whose results are integers that no scale belongs to (ConvInteger, MatMulInteger, DynamicQuantizeLinear).
    """
    changed = False
    for node in list(model.graph):
        rewrite = _REWRITES.get((node.domain, node.op_type))
        result = None if rewrite is None or node.attributes.get_int("channels_last", 0) else rewrite(node)
        if result is not None:
            take_place(node, result)
            model.graph.remove(node, safe=True)
            changed = True
    return changed


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """The input at `index`, None where it is not given."""
    return node.inputs[index] if len(node.inputs) > index else None


def _needed(node: ir.Node, index: int) -> ir.Value:
    value = operand(node, index)
    assert value is not None
    return value


def dequantized(at: ir.Node, q: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int | None = None) -> ir.Value:
    """``(q - zero) * scale`` in front of `at`: per tensor, or along `axis` where scale or zero point are vectors."""
    scale, zero = flat(at, scale), None if zero is None else flat(at, zero)
    if zero is not None and _rank(scale) != _rank(zero):
        scale, zero = _as_vector(at, scale, zero), _as_vector(at, zero, scale)
    attributes: dict[str, Attribute] = {} if axis is None or _rank(scale) == 0 else {"axis": axis}
    inputs = [q, scale] if zero is None else [q, scale, zero]
    return put(at, "DequantizeLinear", inputs, attributes, dtype=ir.DataType.FLOAT, like=q)


def quantized(
    at: ir.Node, x: ir.Value, scale: ir.Value, zero: ir.Value | None, default: ir.Value | None = None
) -> ir.Value:
    """QuantizeLinear per tensor or row, in front of `at`; without a zero point to the type of `default`, or uint8."""
    dtype = _type_of(zero) or _type_of(default) or ir.DataType.UINT8
    zero = constant(at, "zero", np.zeros((), dtype.numpy())) if zero is None else flat(at, zero)
    scale = flat(at, scale)
    attributes: dict[str, Attribute] = {"axis": -2} if _rank(scale) == 1 else {}  # QLinearMatMul: one for each row
    return put(at, "QuantizeLinear", [x, scale, zero], attributes, dtype=dtype, like=at.outputs[0])


def _type_of(value: ir.Value | None) -> ir.DataType | None:
    return None if value is None else value.dtype


def _rank(value: ir.Value) -> int | None:
    array = constant_array(value)
    if array is not None:
        return array.ndim
    return None if value.shape is None else len(value.shape)


def _as_vector(at: ir.Node, value: ir.Value, other: ir.Value) -> ir.Value:
    """A constant scalar repeated as often as `other` has elements."""
    array = constant_array(value)
    length = other.shape[0] if other.shape is not None and len(other.shape) == 1 else None
    if array is None or array.ndim or not isinstance(length, int):
        return value
    return constant(at, "vector", np.full(length, array))


def _float(at: ir.Node, op: str, inputs: Sequence[ir.Value | None], without: Sequence[str] = ()) -> ir.Value:
    """The float operator `op` with the attributes of `at`."""
    attributes = {k: v.value for k, v in at.attributes.items() if k not in ("channels_last", *without)}
    return put(at, op, inputs, attributes, dtype=ir.DataType.FLOAT, like=at.outputs[0])


def product_of(at: ir.Node, a: ir.Value, b: ir.Value) -> ir.Value:
    """``a * b`` of two scales, folded where they are constants."""
    a, b = flat(at, a), flat(at, b)
    left, right = constant_array(a), constant_array(b)
    if left is not None and right is not None:
        return constant(at, "scale", np.asarray(left * right, np.float32))
    return put(at, "Mul", [a, b], dtype=ir.DataType.FLOAT, like=b if _rank(b) else a)


def _conv(node: ir.Node) -> ir.Value:
    x, sx, zx, w, sw, zw, sy, zy = (_needed(node, i) for i in range(8))
    inputs: list[ir.Value | None] = [dequantized(node, x, sx, zx), dequantized(node, w, sw, zw, axis=0)]
    bias = operand(node, 8)
    if bias is not None:
        inputs.append(dequantized(node, bias, product_of(node, sx, sw), None, axis=0))
    return quantized(node, _float(node, "Conv", inputs), sy, zy)


def _matmul(node: ir.Node) -> ir.Value | None:
    a, sa, za, b, sb, zb, sy, zy = (_needed(node, i) for i in range(8))
    if any((_rank(flat(node, v)) or 0) > 1 for v in (sa, za, sb, zb, sy, zy)):
        return None  # one scale for each row of a batch
    left, right = dequantized(node, a, sa, za, axis=-2), dequantized(node, b, sb, zb, axis=-1)
    return quantized(node, _float(node, "MatMul", [left, right]), sy, zy)


def _gemm(node: ir.Node) -> ir.Value:
    """``alpha * A * B + C``; C is int32 in units of ``alpha * sa * sb``. Without y_scale the result is float."""
    a, sa, za, b, sb, zb = (_needed(node, i) for i in range(6))
    columns = 0 if node.attributes.get_int("transB", 0) else 1
    inputs: list[ir.Value | None] = [dequantized(node, a, sa, za), dequantized(node, b, sb, zb, axis=columns)]
    c = operand(node, 6)
    if c is not None:
        alpha = number(node, node.attributes.get_float("alpha", 1.0))
        unit = product_of(node, product_of(node, sa, sb), alpha)
        inputs.append(dequantized(node, c, unit, None, axis=-1))
    y, scale = _float(node, "Gemm", inputs), operand(node, 7)
    return y if scale is None else quantized(node, y, scale, operand(node, 8), a)


def _binary(op: str) -> Callable[[ir.Node], ir.Value]:
    def rewrite(node: ir.Node) -> ir.Value:
        parts = [dequantized(node, _needed(node, i), _needed(node, i + 1), operand(node, i + 2)) for i in (0, 3)]
        y = _float(node, op, parts)
        return quantized(node, y, _needed(node, 6), operand(node, 7), operand(node, 0))

    return rewrite


def _unary(op: str, without: Sequence[str] = ()) -> Callable[[ir.Node], ir.Value]:
    def rewrite(node: ir.Node) -> ir.Value:
        x = dequantized(node, _needed(node, 0), _needed(node, 1), operand(node, 2))
        y = _float(node, op, [x], without)
        return quantized(node, y, _needed(node, 3), operand(node, 4), operand(node, 0))

    return rewrite


def _softmax(node: ir.Node) -> ir.Value | None:
    """Before opset 13 softmax went over all axes from `axis` on."""
    x, axis = _needed(node, 0), node.attributes.get_int("axis", -1)
    last = x.shape is not None and axis in (-1, len(x.shape) - 1)
    return _unary("Softmax", ("opset",))(node) if last or node.attributes.get_int("opset", 0) >= 13 else None


def _concat(node: ir.Node) -> ir.Value:
    triples = [node.inputs[i : i + 3] for i in range(2, len(node.inputs), 3)]
    parts = [dequantized(node, q, s, z) for q, s, z in triples if q is not None and s is not None]
    return quantized(node, _float(node, "Concat", parts), _needed(node, 0), operand(node, 1), operand(node, 2))


def _where(node: ir.Node) -> ir.Value:
    parts = [dequantized(node, _needed(node, i), _needed(node, i + 1), operand(node, i + 2)) for i in (1, 4)]
    y = _float(node, "Where", [node.inputs[0], *parts])
    return quantized(node, y, _needed(node, 7), operand(node, 8))


def _to_float(node: ir.Node) -> ir.Value:
    """MatMulIntegerToFloat and DynamicQuantizeMatMul: integers times both scales, plus a bias."""
    if node.op_type == "DynamicQuantizeMatMul":
        a, sa, za = _quantize_dynamically(node, _needed(node, 0))
        b, sb, zb, bias = _needed(node, 1), _needed(node, 2), operand(node, 3), operand(node, 4)
    else:
        a, b, sa, sb = (_needed(node, i) for i in range(4))
        za, zb, bias = operand(node, 4), operand(node, 5), operand(node, 6)
    total = put(node, "MatMulInteger", [a, b, za, zb], dtype=ir.DataType.INT32, like=node.outputs[0])
    real = put(node, "Cast", [total], {"to": int(ir.DataType.FLOAT)}, dtype=ir.DataType.FLOAT, like=total)
    y = put(node, "Mul", [real, product_of(node, sa, sb)], dtype=ir.DataType.FLOAT, like=total)
    return y if bias is None else put(node, "Add", [y, bias], dtype=ir.DataType.FLOAT, like=total)


def _quantize_dynamically(at: ir.Node, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    q = put(at, "DynamicQuantizeLinear", [x], dtype=ir.DataType.UINT8, like=x)
    producer = q.producer()
    assert producer is not None
    producer.resize_outputs(3)
    scale, zero = producer.outputs[1:]
    scale.name, zero.name = f"{q.name}_scale", f"{q.name}_zero"
    scale.dtype, zero.dtype = ir.DataType.FLOAT, ir.DataType.UINT8
    scale.shape = zero.shape = ir.Shape([])
    return q, scale, zero


def standard_domain(node: ir.Node) -> str:
    """Where what ONNX allows from opset 21 on (blocks, 4 and 16 bits) goes: "graphopt" in a model of a lower opset.

    The importer is given neither: `integer_ops` expands both.
    """
    return "" if _opset(node) >= 21 else "graphopt"


def _opset(node: ir.Node) -> int:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return graph.opset_imports.get("", 1)


def _standard(node: ir.Node) -> ir.Value | None:
    """onnxruntime's own QuantizeLinear and DequantizeLinear, which had 16 bits before ONNX's had them."""
    if node.attributes.get_int("block_size", 0):
        return None
    x, scale, zero = _needed(node, 0), _needed(node, 1), operand(node, 2)
    forward = node.op_type == "QuantizeLinear"
    dtype = (_type_of(zero) or ir.DataType.UINT8) if forward else ir.DataType.FLOAT
    narrow = (_type_of(zero) if forward else x.dtype or _type_of(zero)) in (None, ir.DataType.INT8, ir.DataType.UINT8)
    axis = {"axis": node.attributes.get_int("axis", 1)} if _rank(scale) else {}
    inputs = [x, flat(node, scale)] if zero is None else [x, flat(node, scale), flat(node, zero)]
    domain = "" if narrow or x.dtype == ir.DataType.INT32 else standard_domain(node)
    return put(node, node.op_type, inputs, axis, domain=domain, dtype=dtype, like=node.outputs[0])


_REWRITES: dict[tuple[str, str], Callable[[ir.Node], ir.Value | None]] = {
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _matmul,
    (MICROSOFT, "QLinearConv"): _conv,
    (MICROSOFT, "QGemm"): _gemm,
    (MICROSOFT, "QLinearAdd"): _binary("Add"),
    (MICROSOFT, "QLinearMul"): _binary("Mul"),
    (MICROSOFT, "QLinearSigmoid"): _unary("Sigmoid"),
    (MICROSOFT, "QLinearLeakyRelu"): _unary("LeakyRelu"),
    (MICROSOFT, "QLinearAveragePool"): _unary("AveragePool"),
    (MICROSOFT, "QLinearGlobalAveragePool"): _unary("GlobalAveragePool"),
    (MICROSOFT, "QLinearSoftmax"): _softmax,
    (MICROSOFT, "QLinearConcat"): _concat,
    (MICROSOFT, "QLinearWhere"): _where,
    (MICROSOFT, "MatMulIntegerToFloat"): _to_float,
    (MICROSOFT, "DynamicQuantizeMatMul"): _to_float,
    (MICROSOFT, "QuantizeLinear"): _standard,
    (MICROSOFT, "DequantizeLinear"): _standard,
}
