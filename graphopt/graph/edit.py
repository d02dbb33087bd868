"""Small edits that most passes need, where onnx-ir has no word for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph.absent import is_absent

if TYPE_CHECKING:
    from collections.abc import Iterator

    Array = np.ndarray[Any, Any]


def constant_array(value: ir.Value | None) -> Array | None:
    """The array behind `value` when it is known at compile time, else None.

    Known are initializers that no caller can override, and outputs of `Constant` nodes. (`const_value` alone
    does not tell: onnx-ir also propagates through it.) Those left out of an artifact are not known.
    """
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        tensor = value.const_value
        return None if tensor is None or is_absent(tensor) else tensor.numpy()
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or is_absent(tensor) else tensor.numpy()


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that are attributes of `node`: branches of If, bodies of Loop and Scan; not those inside of them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def fresh_name(graph: ir.Graph, hint: str) -> str:
    """A value and node name that nothing in `graph` or its subgraphs has: `hint`, else `hint_1`, `hint_2`...

    The taken names, and how far each was counted, are kept on the graph (`graph.meta`): many calls cost one scan.
    """
    taken: dict[str, int] | None = graph.meta.get("graphopt.names")
    if taken is None:
        taken = dict.fromkeys(_names(graph), 0)
        graph.meta["graphopt.names"] = taken
    name = hint
    while name in taken:
        taken[hint] += 1
        name = f"{hint}_{taken[hint]}"
    taken[name] = 0
    return name


def forget_names(model: ir.Model) -> None:
    """Drop the names that `fresh_name` remembered: nodes may have come and gone without it."""
    for graph in [*model.graphs(), *(function.graph for function in model.functions.values())]:
        graph.meta.pop("graphopt.names", None)


def _names(graph: ir.Graph) -> set[str]:
    names: set[str] = set()
    top = graph
    for node in top.all_nodes():
        names.add(node.name or "")
        names.update(v.name or "" for v in node.outputs)
    for g in [top, *top.subgraphs()]:
        names.update(v.name or "" for v in g.inputs)
        names.update(g.initializers)
    return names


def add_constant(graph: ir.Graph, hint: str, array: Array) -> ir.Value:
    """A new initializer of `graph` holding `array`, under a fresh name made from `hint`."""
    name = fresh_name(graph, hint)
    tensor = ir.Tensor(np.asarray(array, order="C"), name=name)
    value = ir.val(name, dtype=tensor.dtype, shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def used_once(value: ir.Value) -> bool:
    """True when exactly one node input reads `value` (subgraphs included) and the graph does not return it."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def remove_unused(model: ir.Model) -> int:
    """Remove nodes whose results nobody reads, and unread initializers; returns how many nodes went."""
    before = sum(1 for _ in model.graph.all_nodes())
    common.RemoveUnusedNodesPass()(model)
    return before - sum(1 for _ in model.graph.all_nodes())
