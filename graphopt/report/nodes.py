"""The items of a graph as plain data for the page's script."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphopt.graph.cost import cost
from graphopt.graph.provenance import PASSES, sources
from graphopt.noise import CLEAN
from graphopt.report.blocks import blocks
from graphopt.report.evidence import Evidence
from graphopt.report.html import clean
from graphopt.report.latency import Layer
from graphopt.report.layout import place
from graphopt.report.tensors import weights
from graphopt.report.union import Item, Union, is_tensor, type_of

LONGEST = 400
"""Characters of an attribute or docstring that are shown."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What is known of each item besides the graph. `items`: name before or after -> item."""

    union: Union
    items: dict[str, int]
    layer: dict[int, int]
    """Item -> index of its layer in the latency table."""


def index(union: Union, layers: Sequence[Layer]) -> Found:
    """Names to items; an item's layer is the one that its node, or a source of its node, is."""
    items: dict[str, int] = {}
    for which in ("after", "before"):
        for number, item in enumerate(union.items):
            node: ir.Node | None = getattr(item, which)
            if node is not None:
                items.setdefault(node.name or "", number)
    by_name = {name: number for number, layer in enumerate(layers) for name in layer.nodes}
    owner: dict[int, int] = {}
    for number, item in enumerate(union.items):
        for node in item.nodes:
            for source in [node.name or "", *(sources(node) if item.status != "added" else ())]:
                if source in by_name:
                    owner.setdefault(number, by_name[source])
    return Found(union, items, owner)


def to_json(evidence: Evidence, found: Found, layers: Sequence[Layer]) -> dict[str, Any]:
    """The graph as the script reads it (`static/graph.js` says what the keys mean)."""
    union = found.union
    layout = place(len(union.items), [(wire.source, wire.target) for wire in union.wires])
    titles, parents, members = blocks([item.name if item.nodes else "" for item in union.items])
    said = sayings(evidence.passes)
    spent = [_costs(model) for model in (evidence.before, evidence.after)]
    items = [_item(item, evidence, said, spent) for item in union.items]
    for number, item in enumerate(items):
        item |= {"x": round(layout.x[number], 2), "r": layout.row[number], "k": members[number]}
        if number in found.layer:
            item["l"] = found.layer[number]
    return {
        "two": evidence.before is not None,
        "items": items,
        "wires": [
            [w.source, w.target, w.sides, clean(w.name), clean(w.type), [round(v, 2) for p in route for v in p]]
            for w, route in zip(union.wires, layout.routes, strict=True)
        ],
        "blocks": [[clean(title), parent] for title, parent in zip(titles, parents, strict=True)],
        "layers": [[clean(one.name), one.ms, one.share, one.kernels, one.onnxruntime_ms] for one in layers],
    }


@dataclasses.dataclass(frozen=True)
class Saying:
    """What a pass said of a node: that it changed it, or why it did not."""

    by: str
    node: str
    changed: bool
    text: str


def sayings(passes: Sequence[Mapping[str, Any]]) -> dict[str, list[Saying]]:
    """What the passes said, by name of the node, in the order of the pipeline."""
    found: dict[str, list[Saying]] = {}
    for step in passes:
        name = title(step)
        for change in step.get("changes", ()):
            found.setdefault(change["node"], []).append(Saying(name, change["node"], True, str(change["action"])))
        for skip in step.get("skipped", ()):
            found.setdefault(skip["node"], []).append(Saying(name, skip["node"], False, str(skip["reason"])))
    return found


def title(step: Mapping[str, Any]) -> str:
    """The name of the pass of a step."""
    return str(step.get("pass", "")).partition("{")[0]


def about(item: Item, said: Mapping[str, list[Saying]]) -> list[Saying]:
    """What was said of an item: by its names, and by those of the nodes that it stems from."""
    own = [] if item.status == "added" else [name for node in item.nodes for name in sources(node)]
    names = dict.fromkeys([*(node.name or "" for node in item.nodes), *own])
    return list(dict.fromkeys(one for name in names for one in said.get(name, ())))


def touched(item: Item, said: Mapping[str, list[Saying]], order: Sequence[str]) -> list[str]:
    """The passes that made or changed an item, by their mark on the node and by what they said; in their order."""
    marks: list[str] = [] if item.after is None else json.loads(item.after.metadata_props.get(PASSES, "[]"))
    names = dict.fromkeys([*marks, *(one.by for one in about(item, said) if one.changed)])
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _costs(model: ir.Model | None) -> dict[str, list[int]]:
    """MACs, parameters (dequantized ones too), bytes read and written of each node."""
    if model is None:
        return {}
    found = {n.name: [n.macs, n.parameters, n.bytes_read, n.bytes_written] for n in cost(model).nodes}
    for node in model.graph.all_nodes():
        if not is_tensor(node):
            for value in node.inputs:
                producer = None if value is None else value.producer()
                if producer is not None and is_tensor(producer) and producer.op_type != "Constant":
                    found[node.name or ""][1] += found[producer.name or ""][1]
    return found


def _item(
    item: Item, evidence: Evidence, said: Mapping[str, list[Saying]], spent: list[dict[str, list[int]]]
) -> dict[str, Any]:
    found: dict[str, Any] = {"n": clean(item.name), "o": clean(item.op), "s": item.status, "m": item.sides}
    if not item.nodes:
        return {**found, "t": clean(item.type)}
    was, now = item.before, item.after
    optional: dict[str, Any] = {
        "b": was.name if was is not None and now is not None and was.name != now.name else None,
        "p": was.op_type if was is not None and now is not None and was.op_type != now.op_type else None,
        "w": item.what,
        "y": touched(item, said, [title(step) for step in evidence.passes]),
        "z": [_line(one, item) for one in about(item, said)],
        "f": [name for name in sources(item.nodes[0]) if name != item.name],
        "a": _attributes(was, now),
        "i": [_values(node, [v for v in node.inputs if v is not None]) for node in item.nodes[:1]],
        "u": [_values(node, list(node.outputs)) for node in item.nodes[:1]],
        "c": [None if n is None else known.get(n.name or "") for n, known in zip((was, now), spent, strict=True)],
        "h": [_weight(dataclasses.asdict(weight)) for weight in weights(was, now)],
        "d": _short((now or was).doc_string or "") if (now or was) is not None else None,  # pyright: ignore[reportOptionalMemberAccess]
    }
    error = evidence.errors.get(now.name or "") if now is not None else None
    if error is not None:
        own, all_ = error.alone.db, error.accumulated
        optional["e"] = [all_.db, own, all_.largest, share_off(all_.db), share_off(own)]
    return found | {key: _cleaned(value) for key, value in optional.items() if value}


def share_off(db: float) -> float:
    """Decibels as ``||after - before|| / ||before||``; 0 where both are equal."""
    return 0.0 if db >= CLEAN else 10 ** (-db / 20)


def _line(one: Saying, item: Item) -> str:
    where = "" if one.node == item.name else f" {one.node}"
    return f"{one.by}{where}: {one.text}" if one.changed else f"{one.by} left{where or ' it'}: {one.text}"


def _weight(weight: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in weight.items() if value is not None}


def _values(_: ir.Node, values: list[ir.Value]) -> list[list[str]]:
    return [[value.name or "", type_of(value)] for value in values]


def _attributes(was: ir.Node | None, now: ir.Node | None) -> list[list[str]]:
    """Name, value before, value after; empty where there is none."""
    sides = [{} if node is None else {name: _text(a) for name, a in node.attributes.items()} for node in (was, now)]
    return [[name, *(side.get(name, "") for side in sides)] for name in sorted({*sides[0], *sides[1]})]


def _text(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return _short(f"{tensor.dtype.name.lower()}{list(tensor.shape)}")
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "a graph"
    return _short(str(attribute.value))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {key: _cleaned(one) for key, one in value.items()}
    return [_cleaned(one) for one in value] if isinstance(value, (list, tuple)) else value
