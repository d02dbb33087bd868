"""What changed between two graphs: nodes added, removed, fused, replaced, retyped and changed, and in what."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from graphopt.differences import WeightChange, differences, retyped, weight_changes
from graphopt.match import Matching, match
from graphopt.printable import printable


@dataclasses.dataclass(frozen=True)
class Change:
    """A node that is the same node still, and what is different: op, attributes, weights, inputs, types."""

    node: str
    before: str
    what: list[str]


@dataclasses.dataclass(frozen=True)
class Merge:
    """Nodes `before` that became the nodes `after`: several into one (fused), or otherwise (replaced)."""

    before: list[str]
    after: list[str]


@dataclasses.dataclass(frozen=True)
class GraphDiff:
    """Names of nodes, in the order of their graph; every node of both graphs is accounted for once in `added`,
    `removed`, `fused`, `replaced` and `matched`.

    `matched`: (before, after) of the nodes that are one to one; `changed` are those of them that differ in anything.
    Of these, `retyped` have outputs of another type or shape, and `weights` says how far their constants moved.
    """

    added: list[str]
    removed: list[str]
    changed: list[Change]
    fused: list[Merge]
    replaced: list[Merge]
    retyped: list[Change]
    weights: list[WeightChange]
    matched: list[tuple[str, str]]
    operators: dict[str, str]
    """Node name -> operator, for the listing: of the graph after, and of what is gone from before."""

    @property
    def empty(self) -> bool:
        """Whether the two graphs are the same but for names."""
        return not (self.added or self.removed or self.changed or self.fused or self.replaced)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts of names."""
        found = dataclasses.asdict(self)
        del found["operators"]
        return found

    def __str__(self) -> str:
        if self.empty:
            return f"no difference in {len(self.matched)} nodes"
        named = self.operators
        lines = [
            *(f"fused     {one.after[0]} ({named[one.after[0]]}) <- {', '.join(one.before)}" for one in self.fused),
            *(f"replaced  {', '.join(one.after)} <- {', '.join(one.before)}" for one in self.replaced),
            *(f"removed   {name} ({named[name]})" for name in self.removed),
            *(f"added     {name} ({named[name]})" for name in self.added),
        ]
        other = {one.node for one in self.retyped}
        for one in self.changed:
            was = "" if one.before == one.node else f", was {one.before}"
            word = "retyped " if one.node in other else "changed "
            lines.append(f"{word}  {one.node} ({named[one.node]}{was}): {'; '.join(one.what)}")
        same = len(self.matched) - len(self.changed)
        return "\n".join(map(printable, [*lines, f"unchanged {same} of {len(self.matched)} matched nodes"]))


def diff(before: ir.Model, after: ir.Model) -> GraphDiff:
    """Compare two models: nodes matched by provenance, name and structure (`graphopt.match`), weights by value."""
    found = match(before, after)
    images = found.images()
    olds, news = list(before.graph.all_nodes()), list(after.graph.all_nodes())
    reached = {new for some in images.values() for new in some}
    gone = [node for node in olds if node not in images]
    order = {node: index for index, node in enumerate(news)}
    pairs = sorted(found.pairs.items(), key=lambda pair: order[pair[1]])
    changed: list[Change] = []
    types: list[Change] = []
    weights: list[WeightChange] = []
    for old, new in pairs:
        values, outputs = weight_changes(old, new), retyped(old, new)
        what = [*differences(old, new, images), *map(str, values), *outputs]
        weights += values
        if what:
            changed.append(Change(_name(new), _name(old), what))
        if outputs:
            types.append(Change(_name(new), _name(old), outputs))
    merges = _merges(found)
    return GraphDiff(
        added=[_name(node) for node in news if node not in reached],
        removed=[_name(node) for node in gone],
        changed=changed,
        fused=[one for one in merges if len(one.after) == 1 and len(one.before) > 1],
        replaced=[one for one in merges if len(one.after) > 1 or len(one.before) == 1],
        retyped=types,
        weights=weights,
        matched=[(_name(old), _name(new)) for old, new in pairs],
        operators={_name(node): node.op_type for node in [*gone, *news]},
    )


def _merges(found: Matching) -> list[Merge]:
    return [Merge([_name(n) for n in olds], [_name(n) for n in news]) for olds, news in found.groups]


def _name(node: ir.Node) -> str:
    return node.name or "<unnamed>"
