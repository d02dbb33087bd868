"""Two graphs as one: a node that is on both sides is one item, so that both sides are drawn in the same places."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

import onnx_ir as ir

from graphopt.diff import GraphDiff, diff
from graphopt.graph.cost import constant

Status = Literal["same", "changed", "fused", "replaced", "removed", "added"]
BEFORE, AFTER = 1, 2


@dataclasses.dataclass
class Item:
    """A node, or an input or output of the model, as it is before and after; None where it is not.

    `op`: the operator (after, where there is one), ``"input"`` or ``"output"``. `what`: what changed, in words.
    """

    name: str
    op: str
    before: ir.Node | None = None
    after: ir.Node | None = None
    sides: int = 0
    status: Status = "same"
    what: list[str] = dataclasses.field(default_factory=list[str])
    type: str = ""

    @property
    def nodes(self) -> list[ir.Node]:
        """The node after, then the one before."""
        return [node for node in (self.after, self.before) if node is not None]


@dataclasses.dataclass(frozen=True)
class Wire:
    """A value that item `source` gives to item `target`, on `sides`; `name` and `type` are the value's."""

    source: int
    target: int
    sides: int
    name: str
    type: str


@dataclasses.dataclass(frozen=True)
class Union:
    """Both graphs. `constants`: how many nodes are shown as tensors of their readers; see `is_tensor`."""

    items: list[Item]
    wires: list[Wire]
    constants: int


def unite(before: ir.Model | None, after: ir.Model) -> Union:
    """The union of `before` and `after`; of `after` alone when there is no `before`."""
    news = _drawn(after)
    if before is None:
        items = [Item(_name(n), n.op_type, after=n, sides=AFTER) for n in news]
        return _wired(items, [(after, AFTER)], len(list(after.graph.all_nodes())) - len(news))
    olds = _drawn(before)
    items = _paired(olds, news, diff(before, after))
    hidden = sum(1 for m in (before, after) for _ in m.graph.all_nodes()) - len(olds) - len(news)
    return _wired(items, [(before, BEFORE), (after, AFTER)], hidden)


def _drawn(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if not is_tensor(node)]


def is_tensor(node: ir.Node) -> bool:
    """Whether a node only gives a constant, dequantized or as it is: it is shown as a tensor of its readers."""
    if node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
        return constant(node.inputs[0]) is not None
    return node.op_type == "Constant"


def _name(node: ir.Node) -> str:
    return node.name or "<unnamed>"


# ---- nodes ----------------------------------------------------------------------------------------------


def _paired(olds: list[ir.Node], news: list[ir.Node], found: GraphDiff) -> list[Item]:
    """Items in the order of both graphs, interleaved by how far along each is."""
    left, right = {_name(n): n for n in olds}, {_name(n): n for n in news}
    what = {change.node: change.what for change in found.changed}
    status: dict[str, Status] = dict.fromkeys(what, "changed")
    items = [_item(left.get(a), right.get(b), status.get(b, "same"), what.get(b, [])) for a, b in found.matched]
    for kind, merges in (("fused", found.fused), ("replaced", found.replaced)):
        for merge in merges:
            text = f"{_list(merge.before)} became {_list(merge.after)}"
            some = _couples([left[n] for n in merge.before if n in left], [right[n] for n in merge.after if n in right])
            items.extend(_item(old, new, kind, [text]) for old, new in some)  # pyright: ignore[reportArgumentType]
    items.extend(_item(left.get(name), None, "removed", []) for name in found.removed)
    items.extend(_item(None, right.get(name), "added", []) for name in found.added)
    along = {node: i / len(side) for side in (olds, news) for i, node in enumerate(side)}
    return sorted((item for item in items if item.nodes), key=lambda item: max(along.get(n, 0.0) for n in item.nodes))


def _item(old: ir.Node | None, new: ir.Node | None, status: Status, what: list[str]) -> Item:
    node = new or old
    if node is None:  # a Constant
        return Item("", "")
    return Item(_name(node), node.op_type, old, new, BEFORE * bool(old) | AFTER * bool(new), status, list(what))


def _couples(olds: list[ir.Node], news: list[ir.Node]) -> Iterator[tuple[ir.Node | None, ir.Node | None]]:
    """What stands in one place: the same operator first, then in order; what is left over stands alone."""
    olds = list(olds)
    for new in news:
        old = next((n for n in olds if n.op_type == new.op_type), olds[0] if olds else None)
        if old is not None:
            olds.remove(old)
        yield old, new
    yield from ((old, None) for old in olds)


def _list(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# ---- edges ----------------------------------------------------------------------------------------------


def _wired(items: list[Item], models: Iterable[tuple[ir.Model, int]], constants: int) -> Union:
    """Adds the inputs and outputs, and finds the edges."""
    models = list(models)
    place = {node: index for index, item in enumerate(items) for node in item.nodes}
    ends: dict[tuple[str, str], int] = {}
    wires: dict[tuple[int, int, str], Wire] = {}

    def end(value: ir.Value, kind: str, side: int) -> int:
        index = ends.setdefault((kind, value.name or ""), len(items))
        if index == len(items):
            items.append(Item(value.name or "", kind, type=type_of(value)))
        items[index].sides |= side
        return index

    def wire(value: ir.Value, target: int, side: int) -> None:
        producer = value.producer()
        source = place.get(producer) if producer is not None else inputs.get(value)
        if source is None:
            return
        known = wires.get((source, target, value.name or ""))
        wires[source, target, value.name or ""] = Wire(
            source, target, side | (known.sides if known else 0), value.name or "", type_of(value)
        )

    for model, side in models:
        inputs = {value: end(value, "input", side) for value in model.graph.inputs}
        for node in model.graph.all_nodes():
            if node not in place:
                continue
            inner = [v for a in node.attributes.values() for g in _graphs(a) for v in g.outputs]
            for value in [*node.inputs, *inner]:
                if value is not None:
                    wire(value, place[node], side)
        for value in model.graph.outputs:
            wire(value, end(value, "output", side), side)
    every = 0
    for _, side in models:
        every |= side
    for item in items:
        if not item.nodes and item.sides != every:
            item.status = "added" if item.sides == AFTER else "removed"
    return Union(items, list(wires.values()), constants)


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def type_of(value: ir.Value) -> str:
    """``float32[1, N]``, as far as known."""
    dtype = "" if value.dtype is None else value.dtype.name.lower()
    if value.shape is None:
        return dtype
    return f"{dtype}[{', '.join(str(d) if isinstance(d, int) else str(d.value or '?') for d in value.shape)}]"
