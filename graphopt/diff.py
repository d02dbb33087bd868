"""What changed between two graphs: nodes added, removed, fused, replaced and changed, and in what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.match import Matching, match


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
    """Names of nodes, in the order of their graph; every node of both graphs is accounted for once.

    `matched`: (before, after) of the nodes that are one to one; `changed` are those of them that differ.
    """

    added: list[str]
    removed: list[str]
    changed: list[Change]
    fused: list[Merge]
    replaced: list[Merge]
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
        for one in self.changed:
            was = "" if one.before == one.node else f", was {one.before}"
            lines.append(f"changed   {one.node} ({named[one.node]}{was}): {'; '.join(one.what)}")
        same = len(self.matched) - len(self.changed)
        return "\n".join([*lines, f"unchanged {same} of {len(self.matched)} matched nodes"])


def diff(before: ir.Model, after: ir.Model) -> GraphDiff:
    """Compare two models: nodes matched by provenance, name and structure (`graphopt.match`), weights by value."""
    found = match(before, after)
    images = found.images()
    olds, news = list(before.graph.all_nodes()), list(after.graph.all_nodes())
    reached = {new for some in images.values() for new in some}
    gone = [node for node in olds if node not in images]
    order = {node: index for index, node in enumerate(news)}
    pairs = sorted(found.pairs.items(), key=lambda pair: order[pair[1]])
    changed = [(old, new, what) for old, new in pairs if (what := list(_differences(old, new, images)))]
    return GraphDiff(
        added=[_name(node) for node in news if node not in reached],
        removed=[_name(node) for node in gone],
        changed=[Change(_name(new), _name(old), what) for old, new, what in changed],
        fused=[one for one in _merges(found) if len(one.after) == 1 and len(one.before) > 1],
        replaced=[one for one in _merges(found) if len(one.after) > 1 or len(one.before) == 1],
        matched=[(_name(old), _name(new)) for old, new in pairs],
        operators={_name(node): node.op_type for node in [*gone, *news]},
    )


def _merges(found: Matching) -> list[Merge]:
    return [Merge([_name(n) for n in olds], [_name(n) for n in news]) for olds, news in found.groups]


def _name(node: ir.Node) -> str:
    return node.name or "<unnamed>"


def _differences(old: ir.Node, new: ir.Node, images: dict[ir.Node, list[ir.Node]]) -> Iterator[str]:
    if (old.domain or "ai.onnx", old.op_type) != (new.domain or "ai.onnx", new.op_type):
        yield f"operator {old.op_type} -> {new.op_type}"
    for name in sorted({*old.attributes, *new.attributes}):
        was, now = _attribute(old.attributes.get(name)), _attribute(new.attributes.get(name))
        if not _same(was, now):
            yield f"attribute {name} {_short(was)} -> {_short(now)}"
    quantized: dict[str, list[str]] = {}
    for index in range(max(len(old.inputs), len(new.inputs))):
        was, now = _get(old, index), _get(new, index)
        if _is_quantized(was) != _is_quantized(now):
            quantized.setdefault("quantized" if _is_quantized(now) else "no longer quantized", []).append(str(index))
        else:
            yield from _input_difference(index, was, now, images)
    for how, indices in quantized.items():
        yield f"input {', '.join(indices)} {how}"
    for was, now in zip(old.outputs, new.outputs, strict=False):
        if (was.dtype, str(was.shape)) != (now.dtype, str(now.shape)):
            yield f"output {_type(was)} -> {_type(now)}"


def _input_difference(
    index: int, old: ir.Value | None, new: ir.Value | None, images: dict[ir.Node, list[ir.Node]]
) -> Iterator[str]:
    was, now = constant_array(old), constant_array(new)
    if was is not None and now is not None:
        if was.shape != now.shape or was.dtype != now.dtype:
            yield f"constant {index} {was.dtype}{list(was.shape)} -> {now.dtype}{list(now.shape)}"
        elif not _same(was, now):
            yield f"constant {index} has other values in {int(np.sum(was != now))} of {was.size} places"
        return
    if (was is None) != (now is None) or (old is None) != (new is None):
        yield f"input {index} from {_from(old)} -> {_from(new)}"
        return
    if old is None or new is None:
        return
    producer, source = old.producer(), new.producer()
    if producer is None and source is None:
        return
    if producer is None or source is None or source not in images.get(producer, ()):
        yield f"input {index} from {_from(old)} -> {_from(new)}"


def _is_quantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _get(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _from(value: ir.Value | None) -> str:
    if value is None:
        return "nothing"
    producer = value.producer()
    return str(value.name) if producer is None else _name(producer)


def _attribute(attribute: ir.Attr | None) -> Any:
    if attribute is None or attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return None  # the nodes of subgraphs are compared one by one
    return attribute.as_tensor().numpy() if attribute.type == ir.AttributeType.TENSOR else attribute.value


def _same(was: Any, now: Any) -> bool:
    if isinstance(was, np.ndarray) or isinstance(now, np.ndarray):
        return was is not None and now is not None and np.array_equal(was, now, equal_nan=was.dtype.kind == "f")
    return was == now


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size > 4:
        return f"{value.dtype}{list(value.shape)}"
    return "none" if value is None else str(list(value) if isinstance(value, tuple) else value)


def _type(value: ir.Value) -> str:
    dims = "?" if value.shape is None else ",".join(str(d) for d in value.shape)
    return f"{'?' if value.dtype is None else value.dtype.name.lower()}[{dims}]"
