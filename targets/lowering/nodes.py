"""Small pieces of graph that rewrites put in front of a node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, constant_array, derive, fresh_name

Attribute = int | float | str | Sequence[int]


def put(
    at: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Attribute] | None = None,
    *,
    domain: str = "",
    dtype: ir.DataType | None = None,
    like: ir.Value | None = None,
) -> ir.Value:
    """The result of a new node in front of `at`. Its type is `dtype`, its shape that of `like`, where given."""
    graph = at.graph
    assert isinstance(graph, ir.Graph)
    name = fresh_name(graph, f"{at.name}_{op.lower()}")
    output = ir.val(fresh_name(graph, f"{name}_output"), dtype, None if like is None else like.shape)
    node = ir.node(op, inputs, dict(attributes or {}), domain=domain, outputs=[output], name=name)
    derive(node, [at])
    graph.insert_before(at, node)
    return output


def constant(at: ir.Node, hint: str, array: np.ndarray) -> ir.Value:
    """A new initializer of the graph of `at`."""
    assert isinstance(at.graph, ir.Graph)
    return add_constant(at.graph, f"{at.name}_{hint}", array)


def number(at: ir.Node, value: float) -> ir.Value:
    """A float32 scalar as `constant`."""
    return constant(at, "number", np.array(value, np.float32))


def take_place(node: ir.Node, new: ir.Value, output: int = 0) -> None:
    """Let `new` stand for an output of `node` everywhere, graph outputs with their name too."""
    old = node.outputs[output]
    if old.is_graph_output():
        old.name, new.name = new.name, old.name
    new.shape = old.shape if new.shape is None else new.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def flat(at: ir.Node, value: ir.Value) -> ir.Value:
    """`value` as a scalar if it has one element (of whatever shape), else as it is."""
    array = constant_array(value)
    if array is not None:
        return constant(at, "scalar", array.reshape(())) if array.size == 1 and array.ndim else value
    if value.shape is None or len(value.shape) == 0 or any(dim != 1 for dim in value.shape):
        return value
    shape = constant(at, "scalar_shape", np.zeros(0, np.int64))
    return put(at, "Reshape", [value, shape], dtype=value.dtype)
