"""Views of an `onnx_ir.Graph` for reasoning: which value dominates which, what is convex, what hangs together.

Everything here looks at the nodes of one graph. A node that holds subgraphs (If, Loop, Scan) stands for all
that is inside it: what its subgraphs capture from outside, it reads. Nothing is cached and nothing edited.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import networkx as nx
import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.graph.edit import subgraphs

_SOURCE, _SINK = "source", "sink"
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


def reads(node: ir.Node) -> list[ir.Value]:
    """The values `node` needs from outside: its inputs, then what its subgraphs capture; each once."""
    found = dict.fromkeys(value for value in node.inputs if value is not None)
    inside: set[ir.Value] = set()
    needed: list[ir.Value] = []
    for graph in _graphs_within(node):
        inside.update(graph.inputs, graph.initializers.values())
        for inner in graph:
            inside.update(inner.outputs)
            needed.extend(value for value in inner.inputs if value is not None)
        needed.extend(graph.outputs)
    found.update(dict.fromkeys(value for value in needed if value not in inside))
    return list(found)


def readers(graph: ir.Graph) -> dict[ir.Value, list[ir.Node]]:
    """For each value that is read, the nodes of `graph` that read it, in graph order."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        for value in reads(node):
            found.setdefault(value, []).append(node)
    return found


def to_digraph(graph: ir.Graph) -> nx.MultiDiGraph[ir.Node]:
    """The nodes of `graph` in order, and an edge ``u -> v`` keyed by each value that v reads from u."""
    view: nx.MultiDiGraph[ir.Node] = nx.MultiDiGraph()
    view.add_nodes_from(graph)
    for node in graph:
        for value in reads(node):
            producer = value.producer()
            if producer is not None and producer in view:
                view.add_edge(producer, node, key=value)
    return view


def varying(graph: ir.Graph) -> set[ir.Value]:
    """The values that depend on what is fed, on an outer graph or on chance: all that are not constants."""
    found = set(graph.inputs)
    own = {value for node in graph for value in node.outputs} | set(graph.initializers.values())
    for node in graph:
        needed = reads(node)
        outer = [value for value in needed if value not in own and value.const_value is None]
        found.update(outer)
        if node.op_type in _RANDOM or any(value in found for value in needed):
            found.update(node.outputs)
    return found


# ---- dominance ------------------------------------------------------------------------------------------


def dominators(graph: ir.Graph) -> dict[ir.Value, ir.Value | None]:
    """For each varying value, the last value before it that every path from the graph's inputs passes.

    None: no single value does (the value is an input, or two inputs meet on the way to it).
    """
    return _immediate(_flow(graph), _SOURCE)


def post_dominators(graph: ir.Graph) -> dict[ir.Value, ir.Value | None]:
    """For each varying value that reaches an output, the next value every path to the outputs passes."""
    return _immediate(_flow(graph).reverse(copy=False), _SINK)


def cuts(graph: ir.Graph) -> list[ir.Value]:
    """The values that, each alone, cut the graph's outputs off from its inputs; from input to output.

    Between two neighbours lies a block (a residual block, a branch and its concat) that can be reasoned about
    by itself.
    """
    idom = nx.immediate_dominators(_flow(graph), _SOURCE)
    found: list[ir.Value] = []
    at = idom.get(_SINK, _SOURCE)
    while at != _SOURCE:
        if isinstance(at, ir.Value):
            found.append(at)
        at = idom[at]
    return found[::-1]


def _flow(graph: ir.Graph) -> nx.DiGraph[Any]:
    """Source -> values -> nodes -> values -> sink, over the varying values alone."""
    moving = varying(graph)
    flow: nx.DiGraph[Any] = nx.DiGraph()
    flow.add_nodes_from((_SOURCE, _SINK))
    own = {value for node in graph for value in node.outputs}
    for node in graph:
        needed = [value for value in reads(node) if value in moving]
        flow.add_edges_from((value, node) for value in needed)
        flow.add_edges_from((node, value) for value in node.outputs if value in moving)
        if node.op_type in _RANDOM and not needed:
            flow.add_edge(_SOURCE, node)
    flow.add_edges_from((_SOURCE, value) for value in moving if value not in own and value in flow)
    flow.add_edges_from((_SOURCE, value) for value in graph.inputs)
    flow.add_edges_from((value, _SINK) for value in graph.outputs if value in moving)
    return flow


def _immediate(flow: nx.DiGraph[Any], root: str) -> dict[ir.Value, ir.Value | None]:
    idom = nx.immediate_dominators(flow, root)
    found: dict[ir.Value, ir.Value | None] = {}
    for value in idom:
        if not isinstance(value, ir.Value):
            continue
        at = idom[value]
        while at != root and not isinstance(at, ir.Value):
            at = idom[at]
        found[value] = at if isinstance(at, ir.Value) else None
    return found


# ---- regions --------------------------------------------------------------------------------------------


def between(graph: ir.Graph, inputs: Iterable[ir.Value], outputs: Iterable[ir.Value]) -> list[ir.Node]:
    """The varying nodes that compute `outputs` from `inputs`, in graph order; constants are left out.

    Raises `UsageError` when an output also depends on something that is not among `inputs`, naming it.
    """
    stop, targets = set(inputs), list(outputs)
    moving = varying(graph)
    members = set(graph)
    found: set[ir.Node] = set()
    pending = [value for value in targets if value not in stop]
    while pending:
        value = pending.pop()
        producer = value.producer()
        if producer is None or producer not in members:
            names = ", ".join(f"`{output.name}`" for output in targets)
            raise UsageError(
                f"The region that computes {names} also reads `{value.name}`, which is not among its inputs: "
                "add it to the region's inputs, or choose other boundary values."
            )
        if producer not in found:
            found.add(producer)
            pending.extend(v for v in reads(producer) if v in moving and v not in stop)
    return [node for node in graph if node in found]


def boundary(graph: ir.Graph, nodes: Collection[ir.Node]) -> tuple[list[ir.Value], list[ir.Value]]:
    """The varying values a set of nodes reads from outside, and those it computes that are used outside."""
    members, moving, used_by = set(nodes), varying(graph), readers(graph)
    ordered = [node for node in graph if node in members]
    own = {value: None for node in ordered for value in node.outputs}
    inputs = dict.fromkeys(v for node in ordered for v in reads(node) if v in moving and v not in own)
    ends = set(graph.outputs)
    outputs = [v for v in own if v in ends or any(user not in members for user in used_by.get(v, ()))]
    return list(inputs), outputs


def reentry(graph: ir.Graph, nodes: Collection[ir.Node]) -> list[ir.Node]:
    """A shortest path that leaves `nodes` and comes back: its ends are inside, the rest outside. [] if none."""
    members = set(nodes)
    view = to_digraph(graph)
    came_from: dict[ir.Node, ir.Node] = {}
    pending: list[ir.Node] = []
    for node in (node for node in graph if node in members):
        for user in view.successors(node):
            if user not in members and user not in came_from:
                came_from[user] = node
                pending.append(user)
    for node in pending:  # grows while it is walked: breadth first
        for user in view.successors(node):
            if user in members:
                return [*_trail(came_from, node, members), user]
            if user not in came_from:
                came_from[user] = node
                pending.append(user)
    return []


def is_convex(graph: ir.Graph, nodes: Collection[ir.Node]) -> bool:
    """Whether no path leaves `nodes` and comes back: only then can one node take their place."""
    return not reentry(graph, nodes)


def convex_hull(graph: ir.Graph, nodes: Collection[ir.Node]) -> list[ir.Node]:
    """The smallest convex set of nodes that holds `nodes`, in graph order."""
    view = to_digraph(graph)
    after = _reach(view.successors, nodes)
    before = _reach(view.predecessors, nodes)
    members = set(nodes) | (after & before)
    return [node for node in graph if node in members]


def groups(graph: ir.Graph, wanted: Callable[[ir.Node], bool]) -> list[list[ir.Node]]:
    """The nodes that satisfy `wanted`, parted into sets connected through such nodes; in graph order."""
    order = {node: index for index, node in enumerate(graph)}
    chosen = to_digraph(graph).subgraph([node for node in order if wanted(node)])
    parts = [sorted(part, key=order.__getitem__) for part in nx.weakly_connected_components(chosen)]
    return sorted(parts, key=lambda part: order[part[0]])


def _reach(step: Callable[[ir.Node], Iterable[ir.Node]], nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """All that one or more steps from `nodes` lead to."""
    found: set[ir.Node] = set()
    pending = list(nodes)
    while pending:
        for node in step(pending.pop()):
            if node not in found:
                found.add(node)
                pending.append(node)
    return found


def _trail(came_from: dict[ir.Node, ir.Node], node: ir.Node, members: set[ir.Node]) -> list[ir.Node]:
    trail = [node]
    while trail[-1] not in members:
        trail.append(came_from[trail[-1]])
    return trail[::-1]


def _graphs_within(node: ir.Node) -> Iterator[ir.Graph]:
    """Every graph inside `node`, at any depth."""
    for graph in subgraphs(node):
        yield graph
        for inner in graph:
            yield from _graphs_within(inner)
