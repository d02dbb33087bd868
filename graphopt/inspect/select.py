"""A part of a summary: by name, by operator, by place in the graph."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.graph.edit import subgraphs
from graphopt.graph.views import reads
from graphopt.inspect.summary import Summary, totals

if TYPE_CHECKING:
    from collections.abc import Iterable

ARROW = ".."


def select(
    summary: Summary, model: ir.Model, nodes: Sequence[str] = (), ops: Sequence[str] = (), region: str | None = None
) -> Summary:
    """The part of `summary` on the nodes that match any glob of `nodes`, any of `ops`, and lie in `region`.

    `region` is ``FIRST..LAST``: the nodes on all ways from node FIRST to node LAST, both included; an empty side is the
    graph's own end. Nodes in subgraphs belong to the region of the node that holds them.

    Raises:
        UsageError: nothing matches, or the region names no node.
    """
    inside = None if region is None else _between(model.graph, region)
    kept = [
        node
        for node in summary.nodes
        if (not nodes or any(fnmatchcase(node.name, glob) for glob in nodes))
        and (not ops or any(fnmatchcase(node.op, glob) for glob in ops))
        and (inside is None or node.name in inside)
    ]
    if not kept:
        asked = [*(f"--node {glob}" for glob in nodes), *(f"--op {glob}" for glob in ops)]
        where = [] if region is None else [f"--region {region}"]
        raise UsageError(f"no node of the model matches {' '.join([*asked, *where])}.")
    names = {node.name for node in kept}
    read = {v for n in model.graph.all_nodes() if n.name in names for v in n.inputs if v is not None}
    weights = None if summary.weights is None else [w for w in summary.weights if names & {*w.readers}]
    return dataclasses.replace(
        summary,
        totals=totals(kept, read, weights),
        ops=dict(sorted(Counter(node.op for node in kept).items(), key=lambda item: (-item[1], item[0]))),
        nodes=kept,
        unknown=[name for name in summary.unknown if name in names],
        weights=weights,
        patterns=None
        if summary.patterns is None
        else [
            dataclasses.replace(
                one,
                found=[c for c in one.found if c.node in names],
                missed=[s for s in one.missed if s.node in names],
            )
            for one in summary.patterns
        ],
    )


def _between(graph: ir.Graph, region: str) -> set[str]:
    first, arrow, last = region.partition(ARROW)
    if not arrow:
        raise UsageError(f"--region takes FIRST..LAST, two names of nodes, not {region!r}.")
    order = list(graph)
    named = {node.name: node for node in order}
    for name in filter(None, (first, last)):
        if name not in named:
            raise UsageError(f"--region {region}: the graph has no node {name!r}; `graphopt inspect` lists the names.")
    after = _downstream(order, named[first]) if first else set(order)
    before = _upstream(order, named[last]) if last else set(order)
    chosen = after & before
    return {str(n.name) for node in chosen for n in _with_inner(node)}


def _downstream(order: list[ir.Node], start: ir.Node) -> set[ir.Node]:
    found = {start}
    for node in order:
        if any(value.producer() in found for value in reads(node) if value.producer() is not None):
            found.add(node)
    return found


def _upstream(order: list[ir.Node], end: ir.Node) -> set[ir.Node]:
    found = {end}
    for node in reversed(order):
        if node in found:
            found.update(p for value in reads(node) if (p := value.producer()) is not None)
    return found


def _with_inner(node: ir.Node) -> Iterable[ir.Node]:
    yield node
    for graph in subgraphs(node):
        yield from graph.all_nodes()
