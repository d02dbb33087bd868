"""Where to cut: regions with one way in and one way out that a student may suit."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.graph import views
from graphopt.passes.distil.region import LINEAR, Region

REACH = 8
"""How many post-dominating values after a layer's input a region may span."""


def candidates(graph: ir.Graph) -> list[Region]:
    """Regions between a value and one that it dominates and that post-dominates it; the one with most MACs first.

    Each linear layer (with the constant Add after it), and each stretch from a layer's input to another linear
    layer within reach. Regions overlap.
    """
    moving, above, below = views.varying(graph), views.dominators(graph), views.post_dominators(graph)
    used_by = views.readers(graph)
    found: dict[tuple[ir.Node, ...], Region] = {}
    for node in graph:
        start = next((value for value in node.inputs if value in moving), None)
        if node.op_type not in LINEAR or start is None:
            continue
        stops, at = [node.outputs[0]], below.get(start)
        for _ in range(REACH):
            if at is None or not _dominates(start, at, above):
                break
            producer = at.producer()
            if producer is not None and producer.op_type in LINEAR:
                stops.append(at)
            at = below.get(at)
        for stop in stops:
            region = _between(graph, start, _with_shift(stop, used_by, moving))
            if region is not None:
                found[region.nodes] = region
    return sorted(found.values(), key=lambda region: (-region.macs, -len(region.nodes)))


def _with_shift(value: ir.Value, used_by: dict[ir.Value, list[ir.Node]], moving: set[ir.Value]) -> ir.Value:
    """`value`, or the value after the constant Add that alone reads it."""
    users = used_by.get(value, [])
    if value.is_graph_output() or len(users) != 1 or users[0].op_type != "Add":
        return value
    return users[0].outputs[0] if sum(v in moving for v in users[0].inputs) == 1 else value


def _dominates(start: ir.Value, value: ir.Value, above: dict[ir.Value, ir.Value | None]) -> bool:
    at: ir.Value | None = value
    while at is not None and at is not start:
        at = above.get(at)
    return at is start


def _between(graph: ir.Graph, start: ir.Value, stop: ir.Value) -> Region | None:
    """The region between two values, if nothing else enters or leaves it."""
    try:
        nodes = views.between(graph, [start], [stop])
    except UsageError:
        return None
    inputs, outputs = views.boundary(graph, nodes)
    return Region(tuple(nodes), (start,), (stop,)) if (inputs, outputs) == ([start], [stop]) else None
