"""Operators replaced by their ONNX definition: the schema's function body."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection

import onnx
import onnx.inliner
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.graph import infer_shapes, provenance
from graphopt.targets.lowering.support import has_converter, refused

# The importer knows these names but takes them for another operator or computes them wrongly; ONNX's own
# definition of them in simpler operators is exact.
EXPANDED = frozenset({"Attention", "Mish"})
# Operators that targets have kernels for, or else expand themselves (`integer_ops`).
WHOLE = frozenset({"DynamicQuantizeLinear"})
ROUNDS = 4
"""Definitions may have operators that are defined by others in turn."""


def expand_functions(model: ir.Model) -> ir.Model:
    """Replace operators by their definition until every one left is taken by the importer, or has none.

    Returns the model that takes the place of `model`.
    """
    tried: set[str] = set()
    for _ in range(ROUNDS):
        wanted = _wanted(model) - tried
        if not wanted:
            break
        tried |= wanted
        model = _expanded(model, wanted)
    if tried:
        with contextlib.suppress(ModelError):  # what its shape is not known for is refused by name later
            infer_shapes(model)
    return model


def _wanted(model: ir.Model) -> set[str]:
    version = model.opset_imports.get("", 1)
    nodes = [node for node in model.graph.all_nodes() if node.domain == "" and node.op_type not in WHOLE]
    names = {node.op_type for node in nodes if node.op_type in EXPANDED or not has_converter("", node.op_type)}
    names |= {node.op_type for node in nodes if refused(node)}
    return {name for name in names if _has_body(name, version)}


def _has_body(name: str, version: int) -> bool:
    if not onnx.defs.has(name, version, ""):
        return False
    schema = onnx.defs.get_schema(name, version, "")
    return schema.has_function or schema.has_context_dependent_function  # pyright: ignore[reportAttributeAccessIssue]


def _expanded(model: ir.Model, wanted: Collection[str]) -> ir.Model:
    _spell_out_defaults(model, wanted)
    # The bodies of some operators depend on the types of their inputs, so every value needs its type.
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    try:
        expanded = onnx.inliner.inline_selected_functions(
            proto, [("", name) for name in sorted(wanted)], exclude=False, inline_schema_functions=True
        )
    except RuntimeError:  # onnx can't build the body, for want of a type: the operator is refused by name later
        return model
    result = ir.from_proto(expanded)
    _pass_on_sources(model, result, wanted)
    return result


def _spell_out_defaults(model: ir.Model, wanted: Collection[str]) -> None:
    """A definition refers to its operator's attributes; onnx leaves out those that are not written."""
    version = model.opset_imports.get("", 1)
    for node in model.graph.all_nodes():
        if node.domain == "" and node.op_type in wanted:
            for name, attribute in onnx.defs.get_schema(node.op_type, version, "").attributes.items():
                if name not in node.attributes and attribute.default_value.type:
                    node.attributes[name] = ir.from_proto(attribute.default_value)


def _pass_on_sources(before: ir.Model, after: ir.Model, wanted: Collection[str]) -> None:
    """The nodes of a definition stem from what their operator stems from.

    They stand where it stood, so both graphs are walked in step: a new node belongs to the operator in turn, until all
    the operator's results are there.
    """
    calls = [node for node in before.graph if node.domain == "" and node.op_type in wanted]
    waiting = [({v.name for v in node.outputs if v.name}, node) for node in calls]
    for node in after.graph:
        if provenance.SOURCE in node.metadata_props or not waiting:
            continue
        names, call = waiting[0]
        node.metadata_props[provenance.SOURCE] = json.dumps(provenance.sources(call))
        names -= {v.name for v in node.outputs}
        if not names:
            waiting.pop(0)
