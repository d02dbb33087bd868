"""Matching by what nodes say of themselves: the source nodes they stem from, and their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import networkx as nx
import onnx_ir as ir

from graphopt.graph.provenance import PASSES, sources

QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
NEAR = 8
"""Named ancestors of a node that `names_agree` keeps."""


@dataclasses.dataclass(frozen=True)
class Origins:
    """`sources` of each node of both models; `passes`: whether passes of ours made one of the models from the other;
    `names`: whether equal names mean equal nodes.
    """

    sources: dict[ir.Node, frozenset[str]]
    passes: bool
    names: bool


def origins(before: ir.Model, after: ir.Model) -> Origins:
    """Where the nodes of both models say that they come from."""
    olds, news = list(before.graph.all_nodes()), list(after.graph.all_nodes())
    said = {node: frozenset(sources(node) or [node.name or ""]) for node in [*olds, *news]}
    if any(PASSES in node.metadata_props or said[node] != frozenset([node.name or ""]) for node in said):
        stems = frozenset(name for node in olds for name in said[node])
        if 2 * sum(not stems.isdisjoint(said[node]) for node in news) >= len(news):
            return Origins(said, passes=True, names=True)
    return Origins(said, passes=False, names=names_agree(olds, news))


def names_agree(olds: list[ir.Node], news: list[ir.Node]) -> bool:
    """Whether four of five nodes with the same name and operator on both sides also follow the same named nodes.

    A tool that numbers nodes anew (``Conv_3``) uses old names for other nodes. Which named nodes come before a node
    is told through nodes that only one side has.
    """
    shared = {(n.name, kind(n)) for n in olds} & {(n.name, kind(n)) for n in news}
    before, after = _preceding(olds, shared), _preceding(news, shared)
    agree = [before[key] == after[key] for key in shared]
    return 5 * sum(agree) >= 4 * len(agree)


def _preceding(nodes: list[ir.Node], shared: set[tuple[str | None, tuple[str, str]]]) -> dict[object, set[object]]:
    near: dict[ir.Node, set[object]] = {}
    found: dict[object, set[object]] = {}
    for node in nodes:
        producers = [value.producer() for value in node.inputs if value is not None]
        behind: dict[object, None] = {}
        for producer in producers:
            behind.update(dict.fromkeys(sorted(near.get(producer, ()), key=str) if producer is not None else ()))
        key = (node.name, kind(node))
        if key in shared:
            found[key] = set(behind)
            near[node] = {key}
        else:
            near[node] = set(list(behind)[:NEAR])
    return found


def related(
    olds: Iterable[ir.Node], news: Iterable[ir.Node], known: dict[ir.Node, frozenset[str]]
) -> dict[ir.Node, list[ir.Node]]:
    """Before node -> after nodes with a source in common."""
    users: dict[str, list[ir.Node]] = {}
    for new in news:
        for origin in known[new]:
            users.setdefault(origin, []).append(new)
    return {old: list(dict.fromkeys(new for o in sorted(known[old]) for new in users.get(o, ()))) for old in olds}


def kind(node: ir.Node) -> tuple[str, str]:
    """Domain and operator; ONNX's own domain is the empty one."""
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)


def same_name(
    olds: Iterable[ir.Node], news: Iterable[ir.Node], wanted: Callable[[ir.Node, ir.Node], bool]
) -> dict[ir.Node, ir.Node]:
    """Pairs of the same name and operator that are `wanted`."""
    named = {(node.name, kind(node)): node for node in news}
    found: dict[ir.Node, ir.Node] = {}
    for old in olds:
        new = named.get((old.name, kind(old)))
        if new is not None and wanted(old, new):
            found[old] = named.pop((old.name, kind(old)))
    return found


def join(
    olds: list[ir.Node], news: list[ir.Node], pairs: dict[ir.Node, ir.Node], links: dict[ir.Node, list[ir.Node]]
) -> list[tuple[list[ir.Node], list[ir.Node]]]:
    """Sets of nodes with sources in common; completes `pairs`, and takes from it what was fused into."""
    partner = {new: old for old, new in pairs.items()}
    joined: nx.Graph[ir.Node] = nx.Graph()
    for old in (old for old in olds if old not in pairs):
        fused_into = [new for new in links[old] if new in partner][:1]
        joined.add_edges_from((old, new) for new in fused_into or links[old] if _may_replace(old, new))
    joined.add_edges_from((old, new) for old, new in pairs.items() if new in joined)
    for old in [old for old in olds if old in joined]:  # what else came of nodes that became others
        more = [new for new in links[old] if new not in partner and new not in joined and _may_replace(old, new)]
        joined.add_edges_from((old, new) for new in more)
    order = {node: index for index, node in enumerate([*olds, *news])}
    groups: list[tuple[list[ir.Node], list[ir.Node]]] = []
    for part in nx.connected_components(joined):
        ordered = sorted(part, key=order.__getitem__)
        left, right = [n for n in ordered if order[n] < len(olds)], [n for n in ordered if order[n] >= len(olds)]
        for old in left:
            pairs.pop(old, None)
        if len(left) == len(right) == 1 and kind(left[0]) == kind(right[0]):
            pairs[left[0]] = right[0]
        else:
            groups.append((left, right))
    return sorted(groups, key=lambda group: order[group[0][0]])


def _may_replace(old: ir.Node, new: ir.Node) -> bool:
    """Q/DQ nodes stand beside what they stem from, not in its place."""
    return new.op_type not in QDQ or old.op_type in QDQ
