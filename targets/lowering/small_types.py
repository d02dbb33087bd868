"""Types that TVM's importer lacks, held in ones that it has: float8 by its bytes in uint8, 4-bit integers in 8 bits.

Casts, Quantize- and DequantizeLinear compute; what only moves values moves bytes. A program's inputs and outputs of
these types are such bytes, which the artifact's runtime turns into what they mean and back.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.targets.lowering.nodes import Attribute, constant, put, take_place

D = ir.DataType
FLOAT8 = (D.FLOAT8E4M3FN, D.FLOAT8E4M3FNUZ, D.FLOAT8E5M2, D.FLOAT8E5M2FNUZ)
CARRIER = {**dict.fromkeys(FLOAT8, D.UINT8), D.INT4: D.INT8, D.UINT4: D.UINT8}
MOVING = frozenset(
    {
        "Identity",
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Concat",
        "Slice",
        "Gather",
        "Expand",
        "Tile",
    }
)


def hold_small_types(model: ir.Model) -> None:
    """Rewrite `model` in place: casts by arithmetic, then values of a small type that only move by their carrier."""
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "Cast" and node.graph is not None:
            _cast(node)
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    small = [value for value in values if value.dtype in CARRIER]
    if not small:
        return
    held = {value for value in small if _moves(value)}
    for value in held:
        assert value.dtype is not None
        if value.const_value is not None and value.is_initializer():
            array = value.const_value.numpy()
            bytes_ = array.view(np.uint8) if value.dtype in FLOAT8 else array.astype(CARRIER[value.dtype].numpy())
            value.const_value = ir.Tensor(bytes_, name=value.name)
        value.type = ir.TensorType(CARRIER[value.dtype])  # copies of the model share types


def _moves(value: ir.Value) -> bool:
    nodes = [producer for producer in [value.producer()] if producer is not None] + list(value.consumers())
    moving = MOVING if value.dtype in FLOAT8 else MOVING | {"DequantizeLinear"}  # integers mean the same in 8 bits
    return all(node.domain == "" and node.op_type in moving for node in nodes)


def _cast(node: ir.Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.dtype is None or y.dtype is None or (x.dtype not in CARRIER and y.dtype not in CARRIER):
        return
    wide = as_float(node, x) if x.dtype in FLOAT8 else _bytes(node, x) if x.dtype in CARRIER else x
    if y.dtype in FLOAT8:
        result = from_float(node, _to(node, wide, D.FLOAT), y.dtype, node.attributes.get_int("saturate", 1) != 0)
    elif y.dtype in CARRIER:
        result = _wrapped(node, _to(node, wide, D.INT32), y.dtype)
    else:
        result = _to(node, wide, y.dtype)
    result = _as_small(node, result, y)
    result.shape = y.shape
    take_place(node, result)
    assert isinstance(node.graph, ir.Graph)
    node.graph.remove(node, safe=True)


def _bytes(at: ir.Node, x: ir.Value) -> ir.Value:
    """`x` as its carrier: a node that becomes one of the carrier's type when `x` does."""
    assert x.dtype is not None
    return put(at, "Identity", [x], dtype=CARRIER[x.dtype], like=x)


def _as_small(at: ir.Node, carried: ir.Value, y: ir.Value) -> ir.Value:
    """`carried` under the type of `y`, until all of that type are held in their carriers."""
    if y.dtype not in CARRIER:
        return carried
    return put(at, "Identity", [carried], dtype=y.dtype, like=y)


def _to(at: ir.Node, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    return x if x.dtype == dtype else put(at, "Cast", [x], {"to": int(dtype)}, dtype=dtype, like=x)


def _wrapped(at: ir.Node, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """The lower 4 bits of int32: ``((x + 8) & 15) - 8``, unsigned ``x & 15``."""

    def c(value: int) -> ir.Value:
        return constant(at, "number", np.array(value, np.int32))

    if dtype == D.INT4:
        x = put(at, "Add", [x, c(8)], dtype=D.INT32, like=x)
    x = put(at, "BitwiseAnd", [x, c(15)], dtype=D.INT32, like=x)
    if dtype == D.INT4:
        x = put(at, "Sub", [x, c(8)], dtype=D.INT32, like=x)
    return _to(at, x, CARRIER[dtype])


def as_float(at: ir.Node, x: ir.Value) -> ir.Value:
    """float8 as float32: each byte looks its value up."""
    assert x.dtype is not None
    table = np.arange(256, dtype=np.uint8).view(x.dtype.numpy()).astype(np.float32)
    index = _to(at, _bytes(at, x), D.INT32)
    return put(at, "Gather", [constant(at, "values", table), index], {"axis": 0}, dtype=D.FLOAT, like=x)


def from_float(at: ir.Node, x: ir.Value, dtype: ir.DataType, saturate: bool) -> ir.Value:
    """float32 as the bytes of float8, to the nearest value, ties to the even code.

    ``code(|x|) = sum over i of |x| >= t[i]`` where t[i] lies in the middle between the values of the codes i - 1 and i;
    the sign is the upper bit. Beyond the largest value: that value if `saturate`, else infinity, or NaN where there is
    none.
    """
    numpy = dtype.numpy()
    values = np.arange(128, dtype=np.uint8).view(numpy).astype(np.float32)
    largest = int(np.flatnonzero(np.isfinite(values)).max())
    unsigned_zero = dtype in (D.FLOAT8E4M3FNUZ, D.FLOAT8E5M2FNUZ)
    nan = int(np.array(np.nan, np.float32).astype(numpy).view(np.uint8)) if not unsigned_zero else 0x80
    beyond = largest + 1 if np.isinf(values[min(largest + 1, 127)]) else nan
    middles = (values[:largest].astype(np.float64) + values[1 : largest + 1]) / 2
    last = values[largest] + (values[largest] - values[largest - 1]) / 2
    middles = np.append(middles, last).astype(np.float32)
    odd = np.arange(1, largest + 2) % 2 == 1
    limits = np.where(odd, np.nextafter(middles, np.float32(np.inf)), middles)

    def c(value: float, kind: type = np.int32) -> ir.Value:
        return constant(at, "number", np.array(value, kind))

    def do(op: str, *inputs: ir.Value, dtype: ir.DataType = D.INT32, **attributes: Attribute) -> ir.Value:
        return put(at, op, inputs, attributes, dtype=dtype, like=x)

    magnitude = do("Abs", x, dtype=D.FLOAT)
    column = put(at, "Unsqueeze", [magnitude, constant(at, "axis", np.array([-1]))], dtype=D.FLOAT)
    reached = put(at, "GreaterOrEqual", [column, constant(at, "limits", limits)], dtype=D.BOOL)
    ones = put(at, "Cast", [reached], {"to": int(D.INT32)}, dtype=D.INT32)
    code = put(at, "ReduceSum", [ones, constant(at, "axis", np.array([-1]))], {"keepdims": 0}, dtype=D.INT32, like=x)
    over = do("Greater", code, c(largest), dtype=D.BOOL)
    code = do("Where", over, c(largest if saturate else beyond & 0x7F), code)
    below = do("Less", x, c(0, np.float32), dtype=D.BOOL)
    at_zero = do("Equal", x, c(0, np.float32), dtype=D.BOOL)
    inverse = do("Less", do("Div", c(1, np.float32), x, dtype=D.FLOAT), c(0, np.float32), dtype=D.BOOL)
    negative = do("Or", below, do("And", at_zero, inverse, dtype=D.BOOL), dtype=D.BOOL)
    if unsigned_zero:
        negative = do("And", negative, do("Greater", code, c(0), dtype=D.BOOL), dtype=D.BOOL)
    signed = do("Add", code, do("Where", negative, c(0x80), c(0)))
    no_number = do("IsNaN", x, dtype=D.BOOL)
    if not saturate and beyond == nan:
        no_number = do("Or", no_number, over, dtype=D.BOOL)
    return _to(at, do("Where", no_number, c(nan), signed), D.UINT8)
