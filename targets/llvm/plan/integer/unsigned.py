"""int8 activations re-expressed as uint8 with the zero point raised by 128, which is exact: kernels know uint8 only.

QuantizeLinear yields uint8 then, DequantizeLinear reads it, and operators that only move or pick values pass it on.
What else reads such a value, and graph outputs, get it back as int8.
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
INT8 = ir.DataType.INT8


def make_unsigned(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place."""
    graph = model.graph
    turned: set[ir.Value] = set()
    for node in list(graph):
        if node.domain != "" or any(v is None for v in node.inputs[:1]):
            continue
        if node.op_type == "QuantizeLinear" and node.outputs[0].dtype == INT8 and _raise_zero_point(node, graph):
            turned.add(_as_unsigned(node.outputs[0]))
        elif node.op_type in MOVING and (node.op_type != "MaxPool" or len(node.outputs) == 1):
            count = MOVING[node.op_type]
            data = [v for v in node.inputs[:count] if v is not None]
            if not turned.intersection(data) or any(v not in turned and constant_array(v) is None for v in data):
                continue
            for index, value in enumerate(data):
                if value not in turned:
                    node.replace_input_with(index, _constant(value, graph))
            turned.update(map(_as_unsigned, node.outputs))
    for value in turned:
        _restore_elsewhere(value, graph)


def _as_unsigned(value: ir.Value) -> ir.Value:
    value.type = ir.TensorType(ir.DataType.UINT8)  # clones of a graph share the type that it had
    return value


def _constant(value: ir.Value, graph: ir.Graph) -> ir.Value:
    array = constant_array(value)
    assert array is not None
    return add_constant(graph, f"{value.name}_unsigned", raised(array))


def raised(array: np.ndarray) -> np.ndarray:
    """int8 as uint8, larger by 128."""
    return (array.astype(np.int16) + 128).astype(np.uint8)


def _raise_zero_point(node: ir.Node, graph: ir.Graph) -> bool:
    """Give a QuantizeLinear or DequantizeLinear the zero point for uint8; False if its own is computed at run time."""
    scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    shape = None if scale is None else scale.shape
    if zero is None:
        if shape is None or not shape.is_static():
            return False
        new = add_constant(graph, f"{node.name}_zero", np.full(shape.numpy(), 128, np.uint8))
    elif constant_array(zero) is not None:
        new = _constant(zero, graph)
    else:
        return False
    node.resize_inputs(3)
    node.replace_input_with(2, new)
    node.attributes.pop("output_dtype", None)
    return True


def _restore_elsewhere(value: ir.Value, graph: ir.Graph) -> None:
    """Adapt every DequantizeLinear of `value`; other readers and the graph's outputs get int8."""
    signed: list[ir.Value] = []

    def as_signed() -> ir.Value:
        if not signed:
            signed.append(_lowered(value, graph))
        return signed[0]

    for use in list(value.uses()):
        node = use.node
        main = node.graph is graph and node.domain == ""
        if main and node.op_type == "DequantizeLinear" and use.idx == 0 and _raise_zero_point(node, graph):
            continue
        if main and node.op_type in MOVING and all(v.dtype == ir.DataType.UINT8 for v in node.outputs):
            continue
        node.replace_input_with(use.idx, as_signed())
    if value.is_graph_output():
        result = as_signed()
        value.name, result.name = fresh_name(graph, f"{value.name}_unsigned"), value.name
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = result


def _lowered(value: ir.Value, graph: ir.Graph) -> ir.Value:
    """Nodes behind the one that yields uint8 `value`: less 128, as int8."""
    producer = value.producer()
    assert producer is not None
    offset = add_constant(graph, f"{value.name}_offset", np.array(128, np.int32))
    steps: list[tuple[str, Callable[[ir.Value], list[ir.Value]], ir.DataType]] = [
        ("Cast", lambda v: [v], ir.DataType.INT32),
        ("Sub", lambda v: [v, offset], ir.DataType.INT32),
        ("Cast", lambda v: [v], INT8),
    ]
    made: list[ir.Node] = []
    current = value
    for op, inputs, dtype in steps:
        output = ir.val(fresh_name(graph, f"{value.name}_signed"), dtype, value.shape)
        attributes = {"to": int(dtype)} if op == "Cast" else {}
        node = ir.node(
            op, inputs(current), attributes, outputs=[output], name=fresh_name(graph, f"{value.name}_signed")
        )
        made.append(node)
        current = output
    for node in made:
        derive(node, [producer])
    graph.insert_after(producer, made)
    return current
