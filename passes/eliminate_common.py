"""`eliminate-common-subexpressions`: nodes that compute what another node has computed."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

import onnx_ir as ir
from pydantic.dataclasses import dataclass

from graphopt.base import EXACT, Context, Pass, Preserves, Report
from graphopt.graph import derive
from graphopt.passes.random_ops import is_random

Key = tuple[Hashable, ...]

MAX_BYTES = 1 << 12
"""Tensor attributes above this are not compared: merging weights that happen to be equal would tie them."""

PLAIN = {ir.AttributeType[n] for n in ("INT", "INTS", "FLOAT", "FLOATS", "STRING", "STRINGS")}


def eliminate_common(model: ir.Model) -> Report:
    """Merge nodes with the same operator, inputs and attributes, in place (value numbering, graph by graph).

    Not merged: random operators and those of other domains (they may be), nodes with subgraphs, and a node whose
    result the graph returns beside the result it would be merged with (each output is a value of its own).
    """
    report = Report()
    for graph in [*model.graphs(), *(f.graph for f in model.functions.values())]:
        seen: dict[Key, ir.Node] = {}
        for node in graph:
            key = _key(node)
            if key is None:
                continue
            first = seen.setdefault(key, node)
            if first is node:
                continue
            reason = _why_apart(first, node)
            if reason:
                report.skip(node.name, reason)
            else:
                _merge(first, node)
                report.change(node.name, f"merged into '{first.name}'")
    return report


def _key(node: ir.Node) -> Key | None:
    """Equal for nodes that compute the same; None for a node that is never merged."""
    if node.domain not in ("", "ai.onnx", "ai.onnx.ml"):
        return None
    attributes: list[tuple[str, Hashable]] = []
    for name, attribute in sorted(node.attributes.items()):
        value = _value(attribute)
        if value is None:
            return None
        attributes.append((name, value))
    inputs = tuple(id(v) for v in node.inputs)
    return node.op_identifier(), node.version, len(node.outputs), inputs, tuple(attributes)


def _value(attribute: ir.Attr) -> Hashable | None:
    if attribute.is_ref():
        return "ref", attribute.ref_attr_name
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.nbytes > MAX_BYTES or tensor.dtype == ir.DataType.STRING:
            return None
        return tensor.dtype, tuple(tensor.shape), tensor.tobytes()
    if attribute.type not in PLAIN:
        return None
    value = attribute.value
    return attribute.type, repr(value if isinstance(value, int | float | str) else list(value))  # -0.0 is not 0.0


def _why_apart(first: ir.Node, node: ir.Node) -> str | None:
    if is_random(node):
        return f"it draws other numbers than '{first.name}'"
    pairs = zip(first.outputs, node.outputs, strict=True)
    if any(a.is_graph_output() and b.is_graph_output() for a, b in pairs):
        return f"the graph returns its result and that of '{first.name}' under two names"
    return None


def _merge(first: ir.Node, node: ir.Node) -> None:
    assert node.graph is not None
    for kept, gone in zip(first.outputs, node.outputs, strict=True):
        was_returned = gone.is_graph_output()
        gone.replace_all_uses_with(kept, replace_graph_outputs=True)
        if was_returned:
            kept.name = gone.name
    derive(first, [node])
    node.graph.remove(node, safe=True)


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Merge nodes that compute the same from the same inputs; random operators stay apart."""

    name: ClassVar[str] = "eliminate-common-subexpressions"
    preserves: ClassVar[Preserves] = EXACT

    def apply(self, model: ir.Model, context: Context) -> Report:
        """See `eliminate_common`."""
        return eliminate_common(model)
