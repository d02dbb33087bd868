"""Which node of one graph is which node of another: by provenance, then by name, then by structure."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from graphopt.match.named import join, origins, related, same_name
from graphopt.match.regions import absorbed, exchanged
from graphopt.match.structure import by_structure, rest

__all__ = ["Matching", "match"]


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
    2. Name: of the nodes that share no source with the other side, same operator and name, unless names turn out to
       mean other nodes (`names_agree`).
    3. Structure: of those still left, equal surroundings, then order and neighbours (`by_structure`).
    4. Where there is no provenance: what is gone gave way to what is new in the same place, or went into a neighbour
       that changed (`exchanged`, `absorbed`).
    """
    olds, news = list(before.graph.all_nodes()), list(after.graph.all_nodes())
    known = origins(before, after)
    links = related(olds, news, known.sources) if known.passes else {}
    pairs: dict[ir.Node, ir.Node] = {}
    groups: list[tuple[list[ir.Node], list[ir.Node]]] = []
    if known.passes:
        pairs = same_name(olds, news, lambda old, new: bool(known.sources[old] & known.sources[new]))
        groups = join(olds, news, pairs, links)
    held = {node for some in groups for side in some for node in side}
    strange = [n for n in olds if n not in pairs and n not in held and not links.get(n)]
    linked = {new for some in links.values() for new in some}
    taken = set(pairs.values())
    foreign = [n for n in news if n not in taken and n not in linked]
    if known.names:
        pairs.update(same_name(strange, foreign, lambda old, new: True))
    by_structure(before.graph, after.graph, strange, foreign, pairs)
    if not known.passes:
        gone, fresh = rest(strange, foreign, pairs)
        groups += exchanged(gone, fresh, Matching(pairs, groups).images())
        held = {node for some in groups for side in some for node in side}
        groups += absorbed([node for node in gone if node not in held], pairs)
    position = {node: index for index, node in enumerate(olds)}
    return Matching(
        dict(sorted(pairs.items(), key=lambda pair: position[pair[0]])),
        sorted(groups, key=lambda group: position[group[0][0]]),
    )
