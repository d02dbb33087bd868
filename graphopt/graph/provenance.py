"""Which source nodes a node comes from, through all passes; kept in `metadata_props`, so it survives saving.

``graphopt.source`` is a JSON list of node names of the model as it was loaded; ``graphopt.passes`` a JSON list
of the passes that made or changed the node. The pipeline calls `snapshot` before and `stamp` after each pass;
a pass that knows better than the rules of `stamp` calls `derive`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

import onnx_ir as ir

SOURCE = "graphopt.source"
PASSES = "graphopt.passes"


def sources(node: ir.Node) -> list[str]:
    """Names of the source nodes that `node` stems from; empty when not known."""
    return json.loads(node.metadata_props.get(SOURCE, "[]"))


def derive(node: ir.Node, origins: Iterable[ir.Node]) -> None:
    """Say that `node` stems from `origins` (in addition to what it stems from already)."""
    names = sources(node)
    for origin in origins:
        names.extend(sources(origin))
    _set_sources(node, names)


def mark_sources(model: ir.Model) -> None:
    """At the door: each node without provenance is its own source."""
    for node in model.graph.all_nodes():
        if SOURCE not in node.metadata_props:
            _set_sources(node, [node.name or ""])


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Before a pass: value name -> sources of its producer, what each node said of its sources, and what it read that
    the pass may have changed: constants and attributes.
    """

    values: dict[str, list[str]]
    nodes: dict[ir.Node, str | None]
    held: dict[ir.Node, tuple[object, ...]]


def snapshot(model: ir.Model) -> Snapshot:
    """What `stamp` compares with."""
    nodes = list(model.graph.all_nodes())
    return Snapshot(
        {value.name: sources(node) for node in nodes for value in node.outputs if value.name},
        {node: node.metadata_props.get(SOURCE) for node in nodes},
        {node: _held(node) for node in nodes},
    )


def _held(node: ir.Node) -> tuple[object, ...]:
    """Constants by identity, attributes by name and identity."""
    constants = (None if v is None or not v.is_initializer() else v.const_value for v in node.inputs)
    return (*constants, *(part for item in sorted(node.attributes.items()) for part in item))


def stamp(model: ir.Model, before: Snapshot, pass_name: str) -> None:
    """Complete the provenance after `pass_name` ran.

    A node that now yields a value inherits the sources of the node that yielded it before. A new node with no
    such output inherits from the producers of its inputs, else from its consumers. New nodes, and those with new
    sources, constants or attributes, are marked with the pass.
    """
    orphans: list[ir.Node] = []
    for node in model.graph.all_nodes():
        had = sources(node)
        names = [*had, *(s for v in node.outputs for s in before.values.get(v.name or "", ()))]
        if set(names) != set(had):
            _set_sources(node, names)
        if SOURCE not in node.metadata_props:
            orphans.append(node)
        elif (
            node not in before.nodes
            or node.metadata_props[SOURCE] != before.nodes[node]
            or _changed(before.held[node], _held(node))
        ):
            _add_pass(node, pass_name)
    for node in orphans:
        _inherit(node, [v.producer() for v in node.inputs if v is not None], pass_name)
    for node in reversed(orphans):
        if not sources(node):
            _inherit(node, [user for v in node.outputs for user in v.consumers()], pass_name)


def _changed(was: tuple[object, ...], now: tuple[object, ...]) -> bool:
    if len(was) != len(now):
        return True
    return any(a is not b and not (isinstance(a, str) and a == b) for a, b in zip(was, now, strict=True))


def _inherit(node: ir.Node, relatives: Iterable[ir.Node | None], pass_name: str) -> None:
    _set_sources(node, [s for r in relatives if r is not None for s in sources(r)])
    _add_pass(node, pass_name)


def _set_sources(node: ir.Node, names: Iterable[str]) -> None:
    node.metadata_props[SOURCE] = json.dumps(list(dict.fromkeys(names)))


def _add_pass(node: ir.Node, pass_name: str) -> None:
    passes: list[str] = json.loads(node.metadata_props.get(PASSES, "[]"))
    if pass_name not in passes:
        node.metadata_props[PASSES] = json.dumps([*passes, pass_name])
