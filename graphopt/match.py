"""Which node of one graph is which node of another: by provenance, then by name, then by structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping

import networkx as nx
import onnx_ir as ir

from graphopt.graph.provenance import sources

QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
ROUNDS = 8
"""Rounds of structural matching; each round's pairs anchor the next."""


@dataclasses.dataclass
class Matching:
    """`pairs`: before -> after, one to one. `groups`: (before nodes, after nodes) where one set became the other.

    Nodes of `before` in neither are gone; nodes of `after` in neither are new.
    """

    pairs: dict[ir.Node, ir.Node]
    groups: list[tuple[list[ir.Node], list[ir.Node]]]

    def images(self) -> dict[ir.Node, list[ir.Node]]:
        """Each before node -> the after nodes it went into."""
        found = {old: [new] for old, new in self.pairs.items()}
        for olds, news in self.groups:
            found.update(dict.fromkeys(olds, news))
        return found


def match(before: ir.Model, after: ir.Model) -> Matching:
    """Match the nodes of two models, subgraphs included.

    1. Provenance: same operator and name, and a source in common; then the nodes left are joined to sets by
       common sources: one to one with the same operator is a pair, anything else a group. A node that is gone
       but is a source of a paired node was fused into it.
    2. Name: of the nodes that share no source with the other side, same operator and name.
    3. Structure: of those still left, nodes whose surroundings look alike up to the graph's ends or to nodes
       already matched (Weisfeiler-Lehman labels, forward and backward).
    """
    olds, news = list(before.graph.all_nodes()), list(after.graph.all_nodes())
    origins = {node: frozenset(sources(node) or [node.name or ""]) for node in [*olds, *news]}
    related = _related(olds, news, origins)
    pairs = _same_name(olds, news, lambda old, new: bool(origins[old] & origins[new]))
    groups = _join(olds, news, pairs, related)
    held = {node for some in groups for side in some for node in side}
    strange = [n for n in olds if n not in pairs and n not in held and not related.get(n)]
    linked = {new for some in related.values() for new in some}
    taken = set(pairs.values())
    foreign = [n for n in news if n not in taken and n not in linked]
    pairs.update(_same_name(strange, foreign, lambda old, new: True))
    _by_structure(before.graph, after.graph, strange, foreign, pairs)
    position = {node: index for index, node in enumerate(olds)}
    return Matching(dict(sorted(pairs.items(), key=lambda pair: position[pair[0]])), groups)


def _related(
    olds: Iterable[ir.Node], news: Iterable[ir.Node], origins: dict[ir.Node, frozenset[str]]
) -> dict[ir.Node, list[ir.Node]]:
    """Before node -> after nodes with a source in common."""
    users: dict[str, list[ir.Node]] = {}
    for new in news:
        for origin in origins[new]:
            users.setdefault(origin, []).append(new)
    return {old: list(dict.fromkeys(new for o in sorted(origins[old]) for new in users.get(o, ()))) for old in olds}


def _kind(node: ir.Node) -> tuple[str, str]:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)


def _same_name(
    olds: Iterable[ir.Node], news: Iterable[ir.Node], wanted: Callable[[ir.Node, ir.Node], bool]
) -> dict[ir.Node, ir.Node]:
    named = {(node.name, _kind(node)): node for node in news}
    found: dict[ir.Node, ir.Node] = {}
    for old in olds:
        new = named.get((old.name, _kind(old)))
        if new is not None and wanted(old, new):
            found[old] = named.pop((old.name, _kind(old)))
    return found


def _join(
    olds: list[ir.Node], news: list[ir.Node], pairs: dict[ir.Node, ir.Node], related: dict[ir.Node, list[ir.Node]]
) -> list[tuple[list[ir.Node], list[ir.Node]]]:
    """Sets of nodes with sources in common; completes `pairs`, and takes from it what was fused into."""
    partner = {new: old for old, new in pairs.items()}
    links: nx.Graph[ir.Node] = nx.Graph()
    for old in (old for old in olds if old not in pairs):
        fused_into = [new for new in related[old] if new in partner][:1]
        links.add_edges_from((old, new) for new in fused_into or related[old] if _may_replace(old, new))
    links.add_edges_from((old, new) for old, new in pairs.items() if new in links)
    order = {node: index for index, node in enumerate([*olds, *news])}
    groups: list[tuple[list[ir.Node], list[ir.Node]]] = []
    for part in nx.connected_components(links):
        ordered = sorted(part, key=order.__getitem__)
        left, right = [n for n in ordered if order[n] < len(olds)], [n for n in ordered if order[n] >= len(olds)]
        for old in left:
            pairs.pop(old, None)
        if len(left) == len(right) == 1 and _kind(left[0]) == _kind(right[0]):
            pairs[left[0]] = right[0]
        else:
            groups.append((left, right))
    return sorted(groups, key=lambda group: order[group[0][0]])


def _may_replace(old: ir.Node, new: ir.Node) -> bool:
    """Q/DQ nodes stand beside what they stem from, not in its place."""
    return new.op_type not in QDQ or old.op_type in QDQ


# ---- structure ------------------------------------------------------------------------------------------


def _by_structure(
    before: ir.Graph, after: ir.Graph, olds: list[ir.Node], news: list[ir.Node], pairs: dict[ir.Node, ir.Node]
) -> None:
    for _ in range(ROUNDS):
        taken = set(pairs.values())
        left, right = [n for n in olds if n not in pairs], [n for n in news if n not in taken]
        if not left or not right:
            return
        marks = {node: index for index, pair in enumerate(pairs.items()) for node in pair}
        ahead_old, back_old = _labels(before, marks)
        ahead_new, back_new = _labels(after, marks)
        ahead, back = {**ahead_old, **ahead_new}, {**back_old, **back_new}
        both = {node: (label, back[node]) for node, label in ahead.items()}
        found = _alike(left, right, both) or _alike(left, right, ahead) or _alike(left, right, back)
        if not found:
            return
        pairs.update(found)


def _alike(olds: list[ir.Node], news: list[ir.Node], labels: Mapping[ir.Node, Hashable]) -> dict[ir.Node, ir.Node]:
    """Nodes of equal label, in graph order, where both sides have as many of them."""
    left: dict[Hashable, list[ir.Node]] = {}
    right: dict[Hashable, list[ir.Node]] = {}
    for side, nodes in ((left, olds), (right, news)):
        for node in nodes:
            side.setdefault(labels[node], []).append(node)
    return {
        old: new
        for label, some in left.items()
        if len(some) == len(right.get(label, ()))
        for old, new in zip(some, right[label], strict=True)
    }


def _labels(graph: ir.Graph, marks: Mapping[ir.Node, int]) -> tuple[dict[ir.Node, int], dict[ir.Node, int]]:
    """For each node a hash of all that leads to it, and of all that it leads to, both as far as the marked nodes."""
    nodes = list(graph.all_nodes())
    ahead: dict[ir.Node, int] = {}
    entry = {value: index for index, value in enumerate(graph.inputs)}
    for node in nodes:
        ahead[node] = marks.get(node, hash((_shape_of(node), tuple(_source(v, entry, ahead) for v in node.inputs))))
    back: dict[ir.Node, int] = {}
    leaves = {value: index for index, value in enumerate(graph.outputs)}
    for node in reversed(nodes):
        uses = [
            sorted([(back.get(user, 0), slot) for user, slot in value.uses()] + [(leaves.get(value, -1), -1)])
            for value in node.outputs
        ]
        back[node] = marks.get(node, hash((_shape_of(node), str(uses))))
    return ahead, back


def _source(value: ir.Value | None, entry: dict[ir.Value, int], ahead: dict[ir.Node, int]) -> Hashable:
    if value is None:
        return None
    producer = value.producer()
    if producer is not None:
        return ahead.get(producer, 0), value.index()
    if value in entry:
        return "input", entry[value]
    return "constant", str(value.dtype), str(value.shape)


def _shape_of(node: ir.Node) -> Hashable:
    """Operator, arity and plain attributes."""
    plain = (ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT, ir.AttributeType.STRING)
    attributes = sorted((name, str(a.value)) for name, a in node.attributes.items() if a.type in plain)
    return (*_kind(node), len(node.inputs), len(node.outputs), tuple(attributes))
