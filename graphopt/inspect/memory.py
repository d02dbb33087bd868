"""How much memory the values between nodes take, node by node."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph.cost import value_bytes
from graphopt.graph.edit import subgraphs
from graphopt.graph.views import reads


def live_bytes(graph: ir.Graph, held: int = 0) -> dict[ir.Node, int]:
    """For each node, subgraphs included, the bytes of all values that exist while it runs, in the order of the graph.

    These are its outputs and what was computed or fed before and is still read, by it or later, or returned. Weights
    do not count. Every value counts by itself, also where a runtime would write in place or share memory (Reshape), so
    this is an upper bound for one that keeps the order. A symbolic dimension counts as 1, an unknown shape as nothing.
    `held` bytes are there besides.
    """
    nodes = list(graph)
    last = {value: place for place, node in enumerate(nodes) for value in reads(node)}
    last.update(dict.fromkeys(graph.outputs, len(nodes)))
    ends: dict[int, list[ir.Value]] = {}
    for value, place in last.items():
        ends.setdefault(place, []).append(value)
    found: dict[ir.Node, int] = {}
    live = {value: value_bytes(value) or 0 for value in graph.inputs if value in last}
    total = held + sum(live.values())
    for place, node in enumerate(nodes):
        own = {value: value_bytes(value) or 0 for value in node.outputs if value.name and not _is_constant(node)}
        total += sum(own.values())
        live.update(own)
        found[node] = total
        for inner in subgraphs(node):
            found.update(live_bytes(inner, total))
        done = [*ends.get(place, ()), *(value for value in own if value not in last)]
        total -= sum(live.pop(value, 0) for value in done)
    return found


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")
