"""8-bit activations in the other type, which is exact: int8 plus 128 is uint8, of a zero point raised by 128.

Kernels know one of the two. QuantizeLinear yields it then, DequantizeLinear and integer products read it, and operators
that only move or pick values pass it on. What else reads such a value, and graph outputs, get it back as it was.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, constant_array, derive, fresh_name

MOVING = {"Concat": None} | dict.fromkeys(
    ("DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "SpaceToDepth",
     "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"), 1,
)  # fmt: skip
"""Operators that move or pick values, and how many of their inputs hold those; None: all."""
ZERO = {("DequantizeLinear", 0): 2, **{(op, i): i + 2 for op in ("ConvInteger", "MatMulInteger") for i in (0, 1)}}
"""Operators that read 8 bits at an input, and the input with their zero point."""
INT8, UINT8 = ir.DataType.INT8, ir.DataType.UINT8


def make_unsigned(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place: what QuantizeLinear yields as int8 becomes uint8."""
    _express(model, UINT8)


def make_signed(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place: what QuantizeLinear yields as uint8 becomes int8."""
    _express(model, INT8)


def _express(model: ir.Model, dtype: ir.DataType) -> None:
    graph = model.graph
    other = INT8 if dtype == UINT8 else UINT8
    turned: set[ir.Value] = set()
    for node in list(graph):
        if node.domain != "" or any(v is None for v in node.inputs[:1]):
            continue
        if node.op_type == "QuantizeLinear" and node.outputs[0].dtype == other and _move_zero(node, 2, dtype, graph):
            turned.add(_as(dtype, node.outputs[0]))
        elif node.op_type in MOVING and (node.op_type != "MaxPool" or len(node.outputs) == 1):
            count = MOVING[node.op_type]
            data = [v for v in node.inputs[:count] if v is not None]
            if not turned.intersection(data) or any(v not in turned and constant_array(v) is None for v in data):
                continue
            for index, value in enumerate(data):
                if value not in turned:
                    node.replace_input_with(index, _constant(value, dtype, graph))
            turned.update(_as(dtype, v) for v in node.outputs)
    for value in turned:
        _restore_elsewhere(value, graph)


def _as(dtype: ir.DataType, value: ir.Value) -> ir.Value:
    value.type = ir.TensorType(dtype)  # clones of a graph share the type that it had
    return value


def _constant(value: ir.Value, dtype: ir.DataType, graph: ir.Graph) -> ir.Value:
    array = constant_array(value)
    assert array is not None
    return add_constant(graph, f"{value.name}_moved", moved(array, dtype))


def moved(array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """int8 as uint8, larger by 128, or uint8 as int8, less by 128."""
    return (array.astype(np.int16) + _offset(dtype)).astype(dtype.numpy())


def _offset(dtype: ir.DataType) -> int:
    return 128 if dtype == UINT8 else -128


def _move_zero(node: ir.Node, index: int, dtype: ir.DataType, graph: ir.Graph) -> bool:
    """Give `node` the zero point for `dtype`, its input at `index`; False if its own is computed at run time."""
    scaled = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    scale, zero = node.inputs[1], node.inputs[index] if len(node.inputs) > index else None
    shape = scale.shape if scaled and scale is not None else ir.Shape([])
    if zero is None:
        if shape is None or not shape.is_static():
            return False
        new = add_constant(graph, f"{node.name}_zero", moved(np.zeros(shape.numpy(), np.int16), dtype))
    elif constant_array(zero) is not None:
        new = _constant(zero, dtype, graph)
    else:
        return False
    node.resize_inputs(max(index + 1, len(node.inputs)))
    node.replace_input_with(index, new)
    node.attributes.pop("output_dtype", None)
    return True


def _restore_elsewhere(value: ir.Value, graph: ir.Graph) -> None:
    """Adapt every node of `ZERO` that reads `value`; other readers and the graph's outputs get it as it was."""
    dtype = value.dtype
    assert dtype is not None
    restored: list[ir.Value] = []

    def as_before() -> ir.Value:
        if not restored:
            restored.append(_restored(value, dtype, graph))
        return restored[0]

    for use in list(value.uses()):
        node = use.node
        main = node.graph is graph and node.domain == ""
        zero = ZERO.get((node.op_type, use.idx)) if main else None
        if zero is not None and _move_zero(node, zero, dtype, graph):
            continue
        if main and node.op_type in MOVING and all(v.dtype == dtype for v in node.outputs):
            continue
        node.replace_input_with(use.idx, as_before())
    if value.is_graph_output():
        result = as_before()
        value.name, result.name = fresh_name(graph, f"{value.name}_moved"), value.name
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = result


def _restored(value: ir.Value, dtype: ir.DataType, graph: ir.Graph) -> ir.Value:
    """Nodes behind the one that yields `value`: what it was before it became `dtype`."""
    producer = value.producer()
    assert producer is not None
    offset = add_constant(graph, f"{value.name}_offset", np.array(_offset(dtype), np.int32))
    before = INT8 if dtype == UINT8 else UINT8
    steps: list[tuple[str, Callable[[ir.Value], list[ir.Value]], ir.DataType]] = [
        ("Cast", lambda v: [v], ir.DataType.INT32),
        ("Sub", lambda v: [v, offset], ir.DataType.INT32),
        ("Cast", lambda v: [v], before),
    ]
    made: list[ir.Node] = []
    current = value
    for op, inputs, kind in steps:
        output = ir.val(fresh_name(graph, f"{value.name}_restored"), kind, value.shape)
        attributes = {"to": int(kind)} if op == "Cast" else {}
        node = ir.node(
            op, inputs(current), attributes, outputs=[output], name=fresh_name(graph, f"{value.name}_restored")
        )
        made.append(node)
        current = output
    for node in made:
        derive(node, [producer])
    graph.insert_after(producer, made)
    return current
