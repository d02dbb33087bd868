"""Squeeze moved behind what follows a convolution, so that bias, activation and pooling meet the convolution itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import add_constant, constant_array, fresh_name
from graphopt.targets.llvm.plan.layout import image, replace
from graphopt.targets.llvm.plan.through import BINARY, UNARY


def sink(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place.

    - A Slice that takes everything goes.
    - ``f(Squeeze(x), ...)`` is ``Squeeze(f(x, ...))`` for elementwise f and global pooling, where x is a convolution's.
    - GlobalMaxPool is MaxPool with a window as large as the image.
    """
    moved: set[ir.Value] = set()
    for node in list(model.graph):
        if node.domain == "" and len(node.outputs) == 1:
            _drop_slice(node)
            _move(node, model.graph, moved)
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "GlobalMaxPool":
            _pool(node, model.graph)
    common.RemoveUnusedNodesPass()(model)


def _drop_slice(node: ir.Node) -> None:
    x, y = node.inputs[0] if node.inputs else None, node.outputs[0]
    if node.op_type != "Slice" or x is None or x.shape is None or not x.shape.is_static() or x.shape != y.shape:
        return
    steps = constant_array(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
    if steps is not None and np.all(steps > 0) and not y.is_graph_output():
        y.replace_all_uses_with(x)


def _move(node: ir.Node, graph: ir.Graph, moved: set[ir.Value]) -> None:
    """Exchange `node` with the squeezes that yield its inputs; its new result is added to those `moved`."""
    if node.op_type not in UNARY | BINARY | {"GlobalMaxPool", "GlobalAveragePool"} or node.outputs[0].shape is None:
        return
    squeezed = next((found for v in node.inputs if (found := _squeezed(v, moved)) is not None), None)
    y = node.outputs[0]
    if squeezed is None or y.shape is None or len(y.shape) != 3:
        return
    source, axis = squeezed
    inputs: list[ir.Value | None] = []
    for index, value in enumerate(node.inputs):
        other, array = _squeezed(value, moved), constant_array(value)
        if other is not None and other[1] == axis and other[0].shape == source.shape:
            inputs.append(other[0])
        elif value is None or (array is not None and (array.size == 1 or (index > 0 and node.op_type in UNARY))):
            inputs.append(value)
        elif array is not None and array.ndim <= 3:
            full = np.expand_dims(array.reshape((1,) * (3 - array.ndim) + array.shape), axis)
            inputs.append(add_constant(graph, f"{value.name}_unsqueezed", full))
        else:
            return
    dims = list(y.shape)
    dims.insert(axis, 1)
    wide = ir.val(fresh_name(graph, f"{y.name}_wide"), y.dtype, ir.Shape(dims))
    moved.add(wide)
    name = fresh_name(graph, f"{node.name}_wide")
    graph.insert_before(node, ir.node(node.op_type, inputs, dict(node.attributes), outputs=[wide], name=name))
    axes = add_constant(graph, f"{node.name}_axes", np.array([axis], np.int64))
    narrow = ir.val(fresh_name(graph, f"{y.name}_narrow"), y.dtype, y.shape)
    graph.insert_before(
        node, ir.node("Squeeze", [wide, axes], outputs=[narrow], name=fresh_name(graph, f"{node.name}_narrow"))
    )
    replace(y, narrow)


def _squeezed(value: ir.Value | None, moved: set[ir.Value]) -> tuple[ir.Value, int] | None:
    """(x, axis) where `value` is Squeeze of one axis of the image of a convolution, or of what `_move` made of it."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Squeeze" or node.domain != "" or len(node.inputs) < 2:
        return None
    x, axes = node.inputs[0], constant_array(node.inputs[1])
    if x is None or image(x) is None or x.shape is None or len(x.shape) != 4 or axes is None or axes.size != 1:
        return None
    axis = int(axes.reshape(-1)[0]) % 4
    producer = x.producer()
    behind = x in moved or (producer is not None and producer.op_type == "Conv")
    return (x, axis) if axis > 1 and behind else None


def _pool(node: ir.Node, graph: ir.Graph) -> None:
    x = node.inputs[0]
    if x is None or x.shape is None or image(x) is None:
        return
    y = node.outputs[0]
    output = ir.val(fresh_name(graph, f"{y.name}_max"), y.dtype, y.shape)
    name = fresh_name(graph, f"{node.name}_max")
    pool = ir.node(
        "MaxPool", [x], {"kernel_shape": [d for d in x.shape[2:] if isinstance(d, int)]}, outputs=[output], name=name
    )
    graph.insert_before(node, pool)
    replace(y, output)
