"""What a pass changed, cut into parts that can be made one by one, without asking the pass.

Values are matched by name (passes keep the names of the values they keep). A node of the after-graph that is not in the
before-graph as it is (operator, attributes, names of inputs and outputs, contents of constant inputs) is *new*, one of
the before-graph that is not in the after-graph *old*. Old and new nodes that share an output, and those joined by a
value that only one of the graphs has, are one `Change`: on its rim lie only values of both graphs.

Where a value of both graphs is not the same value any more (a folded Conv yields what the BatchNormalization yielded),
the changes around it belong together: `join` finds them by numbers, running the new nodes of each change on the
before-graph's values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import onnx_ir as ir

from graphopt.debug.nodes import Constants, Node, same_constant, table

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


@dataclasses.dataclass
class Side:
    """One of the two graphs: its nodes by place, who yields a value, who reads it, its constants."""

    model: ir.Model
    nodes: list[Node] = dataclasses.field(init=False)
    constants: Constants = dataclasses.field(init=False)
    producer: dict[str, int] = dataclasses.field(init=False)
    readers: dict[str, list[int]] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.nodes, self.constants = table(self.model)
        self.producer = {name: k for k, node in enumerate(self.nodes) for name in node.outputs}
        self.readers = {}
        for k, node in enumerate(self.nodes):
            for name in node.inputs:
                self.readers.setdefault(name, []).append(k)


@dataclasses.dataclass(frozen=True)
class Change:
    """Places of the nodes that go (in the before-graph) and of those that come (in the after-graph), ascending."""

    old: tuple[int, ...]
    new: tuple[int, ...]

    def __or__(self, other: Change) -> Change:
        return Change(tuple(sorted({*self.old, *other.old})), tuple(sorted({*self.new, *other.new})))


def changes(before: Side, after: Side) -> list[Change]:
    """The smallest parts, in the order of the after-graph."""
    old, new = _differ(before, after), _differ(after, before)
    links: nx.Graph[tuple[str, int]] = nx.Graph()
    links.add_nodes_from(("old", k) for k in sorted(old))
    links.add_nodes_from(("new", k) for k in sorted(new))
    for kind, side, other, changed in (("old", before, after, old), ("new", after, before, new)):
        for k in changed:
            for name in side.nodes[k].outputs:
                if name in other.producer:
                    links.add_edge((kind, k), ("new" if kind == "old" else "old", other.producer[name]))
                else:
                    links.add_edges_from(((kind, k), (kind, r)) for r in side.readers.get(name, ()))
    found = [
        Change(
            tuple(sorted(k for kind, k in part if kind == "old")),
            tuple(sorted(k for kind, k in part if kind == "new")),
        )
        for part in nx.connected_components(links)
    ]
    return sorted(found, key=lambda c: _place(c, before, after))


def _differ(side: Side, other: Side) -> set[int]:
    """Places of the nodes of `side` that `other` does not have as they are."""
    twins = {(node.content, node.outputs): node for node in other.nodes}
    found: set[int] = set()
    for k, node in enumerate(side.nodes):
        twin = twins.get((node.content, node.outputs))
        if twin is None or not all(same_constant(side.constants.get(n), other.constants.get(n)) for n in node.inputs):
            found.add(k)
    return found


def _place(change: Change, before: Side, after: Side) -> tuple[float, int]:
    """How far down the graph: the first node that comes, else the first that goes."""
    if change.new:
        return change.new[0] / max(len(after.nodes), 1), 1
    return change.old[0] / max(len(before.nodes), 1), 0


def rim(change: Change, before: Side, after: Side) -> list[str]:
    """Values of both graphs that the change yields anew and something outside of it reads, or the graph returns."""
    returned = {str(v.name) for v in after.model.graph.outputs}
    found: list[str] = []
    for k in change.new:
        for name in after.nodes[k].outputs:
            outside = [r for r in after.readers.get(name, ()) if r not in change.new]
            outside += [r for r in before.readers.get(name, ()) if r not in change.old]
            if name in before.producer and (outside or name in returned):
                found.append(name)
    return found


def needs(change: Change, after: Side) -> list[str]:
    """What the change's new nodes read and do not yield themselves, constants left out."""
    made = {name for k in change.new for name in after.nodes[k].outputs}
    read = dict.fromkeys(name for k in change.new for name in after.nodes[k].inputs)
    return [name for name in read if name not in made and name not in after.constants]


def following(
    change: Change, names: Iterable[str], all_changes: Sequence[Change], before: Side, after: Side
) -> list[Change]:
    """The other changes that read one of `names`, in either graph."""
    new = {r for name in names for r in after.readers.get(name, ())}
    old = {r for name in names for r in before.readers.get(name, ())}
    return [c for c in all_changes if c is not change and (new & set(c.new) or old & set(c.old))]
