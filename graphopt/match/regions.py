"""Where no provenance says so: which nodes that are gone went into which nodes that are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import networkx as nx
import onnx_ir as ir

from graphopt.match.named import QDQ
from graphopt.match.traits import constants, fingerprint, look, shapes

Group = tuple[list[ir.Node], list[ir.Node]]
IDLE = frozenset({"Identity", "Dropout"})
"""Operators that compute nothing: when they are gone they went nowhere."""


def absorbed(candidates: Iterable[ir.Node], pairs: dict[ir.Node, ir.Node]) -> list[Group]:
    """Nodes that are gone and that a changed neighbour took over: BatchNormalization into a Conv's weights, Relu
    into a FusedConv. They and the neighbour become a group, and the neighbour's pair goes from `pairs`.

    A node behind p went into it when p's image has another operator, other attributes or constants, and feeds what
    the node fed; a node before c, when c's image is changed so and reads what the node read.
    """
    gone = [node for node in candidates if node not in pairs and node.op_type not in IDLE]
    changed = {old for old, new in pairs.items() if _differs(old, new)}
    into = _into_producers(gone, changed, pairs)
    for node in reversed(gone):
        for after in () if node in into else _consumers(node):
            host = after if after in changed else into.get(after)
            if host is not None and _starts_there(node, host, pairs):
                into[node] = host
                break
    groups: dict[ir.Node, list[ir.Node]] = {}
    for node in gone:
        if node in into:
            groups.setdefault(into[node], []).append(node)
    order = {node: index for index, node in enumerate([*pairs, *gone])}
    found: list[Group] = []
    for host, some in groups.items():
        behind = [n for n in some if host in _ancestors(n, {*some, host})]
        first = [n for n in some if n not in behind]
        found.append(([*sorted(first, key=order.__getitem__), host, *behind], [pairs.pop(host)]))
    return found


def _differs(old: ir.Node, new: ir.Node) -> bool:
    if look(old) != look(new) or shapes(old) != shapes(new):
        return True
    twos = zip(constants(old), constants(new), strict=True)
    return any(fingerprint(a) != fingerprint(b) for (_, a), (_, b) in twos if a.dtype != ir.DataType.STRING)


def _into_producers(
    gone: Sequence[ir.Node], changed: set[ir.Node], pairs: Mapping[ir.Node, ir.Node]
) -> dict[ir.Node, ir.Node]:
    """Each node of `gone` -> the changed node before it that took it over; of several the one that comes last."""
    hosts: dict[ir.Node, dict[ir.Node, None]] = {}
    for node in gone:
        found = [[p] if p in changed else [*hosts.get(p, ())] for p in _producers(node)]
        hosts[node] = dict.fromkeys(host for some in found for host in some)
    for node in reversed(gone):  # a run that does not end where its host goes on was not taken over
        hosts[node] = {host: None for host in hosts[node] if _leads_on(node, host, hosts, pairs)}
    order = {node: index for index, node in enumerate(pairs)}
    return {node: max(some, key=order.__getitem__) for node, some in hosts.items() if some}


def _leads_on(
    node: ir.Node, host: ir.Node, hosts: Mapping[ir.Node, dict[ir.Node, None]], pairs: Mapping[ir.Node, ir.Node]
) -> bool:
    image = pairs[host]
    if any(v.is_graph_output() for v in node.outputs) and any(v.is_graph_output() for v in image.outputs):
        return True
    readers = {user for value in image.outputs for user in value.consumers()}
    return any(host in hosts.get(user, ()) or pairs.get(user) in readers for user in _consumers(node))


def _starts_there(node: ir.Node, host: ir.Node, pairs: Mapping[ir.Node, ir.Node]) -> bool:
    """Whether the host's image reads what `node` reads, as far as that is known."""
    inputs = [value for value in pairs[host].inputs if value is not None]
    if any(v is not None and v.is_graph_input() for v in node.inputs) and any(v.is_graph_input() for v in inputs):
        return True
    sources = {value.producer() for value in inputs}
    return any(p not in pairs or pairs[p] in sources for p in _producers(node))


def exchanged(
    gone: Sequence[ir.Node], fresh: Sequence[ir.Node], images: Mapping[ir.Node, list[ir.Node]]
) -> list[Group]:
    """Connected nodes that are gone, and connected new nodes that stand in their place: between the same nodes.

    Q/DQ nodes stand beside what they quantize, not in its place.
    """
    found: list[Group] = []
    places = [(part, *_ends(part, None)) for part in _parts([node for node in fresh if node.op_type not in QDQ])]
    for part in _parts(gone):
        reads, feeds = _ends(part, images)
        for index, (other, others_read, others_feed) in enumerate(places):
            if feeds & others_feed and (reads & others_read or not (reads or others_read)):
                found.append((part, other))
                del places[index]
                break
    return found


def _parts(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    graph: nx.Graph[ir.Node] = nx.Graph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from((p, node) for node in nodes for p in _producers(node) if p in graph)
    order = {node: index for index, node in enumerate(nodes)}
    return [sorted(part, key=order.__getitem__) for part in nx.connected_components(graph)]


def _ends(part: list[ir.Node], images: Mapping[ir.Node, list[ir.Node]] | None) -> tuple[set[object], set[object]]:
    """What `part` reads and feeds outside it, as nodes of the graph after; a graph's own inputs and outputs by kind."""
    inside = set(part)
    reads: set[object] = set()
    feeds: set[object] = set()
    for node in part:
        near = ((reads, [p for p in _producers(node) if p not in inside]), (feeds, _consumers(node)))
        for ends, nodes in near:
            outside = [n for n in nodes if n not in inside]
            ends.update(outside if images is None else (image for n in outside for image in images.get(n, ())))
        if any(v is not None and v.is_graph_input() for v in node.inputs):
            reads.add("input")
        if any(v.is_graph_output() for v in node.outputs):
            feeds.add("output")
    return reads, feeds


def _producers(node: ir.Node) -> list[ir.Node]:
    return [p for value in node.inputs if value is not None and (p := value.producer()) is not None]


def _consumers(node: ir.Node) -> list[ir.Node]:
    return list(dict.fromkeys(user for value in node.outputs for user in value.consumers()))


def _ancestors(node: ir.Node, within: set[ir.Node]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    work = [node]
    while work:
        for producer in _producers(work.pop()):
            if producer in within and producer not in found:
                found.add(producer)
                work.append(producer)
    return found
