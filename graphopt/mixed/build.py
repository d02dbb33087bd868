"""Build a program for a target, with onnxruntime for the nodes that can't be lowered."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnx_ir.passes import common

from graphopt import ort
from graphopt.base import Context, Part, Program, Target
from graphopt.errors import LoweringError, ModelError
from graphopt.graph import fresh_name, provenance
from graphopt.mixed.culprit import culprit
from graphopt.mixed.partition import Section, extract, partition

if TYPE_CHECKING:
    import numpy as np

INLINE_BELOW = 1024
"""Bytes under which a weight stays in the ONNX of a part."""
ROUNDS = 24
"""Attempts to lower, each with more nodes left to onnxruntime, before all of them are."""


def build_one(target: Target, model: ir.Model, context: Context, fallback: bool) -> Program:
    """What `target` makes of `model` as it is; see `graphopt.mixed.build`."""
    if not target.falls_back:
        return _alone(target, model, context)
    if not fallback:
        return _lower_or_name(target, model, context)
    with contextlib.suppress(LoweringError):
        return _lower(target, model, context)
    whole = _prepared(model)
    blamed: dict[str, str] = {}
    for _ in range(ROUNDS):
        program = _attempt(target, whole, context, blamed)
        if program is not None:
            return program
    return _must(_attempt(target, whole, context, {**_all(whole, "it can't be lowered with the rest"), **blamed}))


def _alone(target: Target, model: ir.Model, context: Context) -> Program:
    """As `_lower_or_name`, of a target beside which onnxruntime can't run."""
    try:
        return _lower_or_name(target, model, context)
    except LoweringError as error:
        said = (
            f"{str(error).rstrip('.')}. The {target.name} export has no fallback to onnxruntime: all nodes must lower."
        )
        raise LoweringError(said, error.nodes) from error


def _lower_or_name(target: Target, model: ir.Model, context: Context) -> Program:
    """As `_lower`; where the error names no node, the one that it fails with is searched for."""
    try:
        return _lower(target, model, context)
    except LoweringError as error:
        found = None if error.nodes else culprit(_prepared(model), lambda part: _lower(target, part, context))
        if found is None:
            raise
        said = f"{str(error).rstrip('.')}. It fails with {found.op_type} {found.name!r}."
        raise LoweringError(said, {str(found.name): found.op_type}) from error


def _lower(target: Target, model: ir.Model, context: Context) -> Program:
    """As `target.build`, and whatever else goes wrong in it is a `LoweringError` too, but for what the host lacks."""
    try:
        return target.build(model, context)
    except (LoweringError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError) as error:
        if isinstance(error, LoweringError):
            raise
        raise _internal(error) from error
    except (TypeError, ValueError, NotImplementedError, ModelError) as error:
        raise _internal(error) from error


def _internal(error: Exception) -> LoweringError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(".")
    return LoweringError(f"The model can't be lowered: graphopt met what it does not expect ({reason}).")


def _prepared(model: ir.Model) -> ir.Model:
    """A copy in which each node is its own source, constants are initializers, and each output is a node's."""
    model = model.clone()
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in model.graph:
        for inner in (node, *_inside(node)):
            inner.metadata_props[provenance.SOURCE] = json.dumps([node.name])
    for index, output in enumerate(model.graph.outputs):
        if output.is_initializer():
            _compute(model, index, output)
    return model


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()


def _compute(model: ir.Model, index: int, constant: ir.Value) -> None:
    """Make a constant that is an output of the model the result of a node."""
    graph, name = model.graph, str(constant.name)
    del graph.initializers[name]
    constant.name = fresh_name(graph, f"{name}_constant")
    graph.register_initializer(constant)
    result = ir.val(name, constant.dtype, constant.shape)
    node = ir.node("Identity", [constant], outputs=[result], name=fresh_name(graph, f"{name}_identity"))
    provenance.mark_sources(model)
    graph.append(node)
    graph.outputs[index] = result


def _all(model: ir.Model, why: str) -> dict[str, str]:
    return {str(node.name): f"{node.op_type} ({why})" for node in model.graph}


def _attempt(target: Target, model: ir.Model, context: Context, blamed: dict[str, str]) -> Program | None:
    """A program with the nodes `blamed` on onnxruntime; None, and more to blame, where that does not work yet."""
    _blame_unknown(model, blamed)
    sections = partition(model, blamed)
    names = [str(node.name) for node in model.graph]
    built: list[tuple[Section, Program | ir.Model]] = []
    for section in sections:
        part = extract(model, section)
        if not section.lowered:
            built.append((section, part))
            continue
        try:
            built.append((section, _lower(target, part, context)))
        except LoweringError as error:
            here = {names[k] for k in section.nodes}
            fresh = {name: why for name, why in error.nodes.items() if name in here}
            found = None if fresh else culprit(part, lambda few: _lower(target, few, context))
            if found is not None:
                fresh = {str(found.name): f"{found.op_type} ({_short(error)})"}
            blamed.update(
                fresh or {name: f"{_op(model, name)} (the part around it can't be compiled)" for name in here}
            )
            return None
    return _assembled(target, model, built, blamed)


def _blame_unknown(model: ir.Model, blamed: dict[str, str]) -> None:
    """What reads a value of unknown shape from onnxruntime can't be lowered."""
    for node in model.graph:
        for value in (v for v in node.inputs if v is not None and str(node.name) not in blamed):
            producer = value.producer()
            if producer is not None and str(producer.name) in blamed and not _known(value):
                blamed[str(node.name)] = f"{node.op_type} (the shape of {value.name} is known only when it runs)"


def _known(value: ir.Value) -> bool:
    named = value.shape is not None and all(isinstance(dim, int) or dim.value is not None for dim in value.shape)
    return named and value.dtype is not None


def _op(model: ir.Model, name: str) -> str:
    return next(node.op_type for node in model.graph if node.name == name)


def _short(error: LoweringError) -> str:
    return str(error).removeprefix("The model can't be lowered: ")[:200]


def _must(program: Program | None) -> Program:
    assert program is not None
    return program


def _assembled(
    target: Target, model: ir.Model, built: list[tuple[Section, Program | ir.Model]], blamed: Mapping[str, str]
) -> Program:
    whole = Program(
        library=b"",
        weights={},
        inputs=[str(value.name) for value in model.graph.inputs],
        outputs=[str(value.name) for value in model.graph.outputs],
    )
    kernels: dict[str, Any] = {}
    reports: list[dict[str, Any]] = []
    features: set[str] = set()
    for index, (section, part) in enumerate(built):
        if isinstance(part, Program):
            whole.device, whole.entry = part.device, part.entry
            features.update(part.cpu_features)
            kernels.update({f"{index}/{name}": row for name, row in kernels_of(part.report).items()})
            reports.append({key: value for key, value in part.report.items() if key != "kernels"})
            whole.packed.update({f"{index}/{name}": few for name, few in part.packed.items()})
            whole.files.update({f"{index}/{name}": data for name, data in part.files.items()})
        else:
            reports.append({"onnxruntime": len(section.nodes)})
        whole.parts.append(_part(part, index, section, whole.weights))
    whole.cpu_features = sorted(features)
    whole.report = {"onnxruntime": _account(model, built, blamed), "parts": reports, "kernels": kernels}
    whole.report["notes"] = [_note(whole.report["onnxruntime"])]
    return whole


def _part(part: Program | ir.Model, index: int, section: Section, weights: dict[str, np.ndarray]) -> Part:
    """The part, its weights moved to `weights` under its index."""
    if isinstance(part, Program):
        own = {f"{index}/{name}": array for name, array in part.weights.items()}
        weights.update(own)
        return Part("library", part.library, part.inputs, part.outputs, list(own))
    outside: list[str] = []
    for name, value in part.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < INLINE_BELOW or tensor.dtype.bitwidth < 8:
            continue
        if tensor.dtype != ir.DataType.STRING:
            weights[f"{index}/{name}"] = tensor.numpy()
            outside.append(f"{index}/{name}")
            value.const_value = ir.ExternalTensor(
                "weights", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
    from graphopt.oracle import lift_limits

    data = lift_limits(ir.to_proto(part)).SerializeToString(deterministic=True)
    try:
        ort.Session(data, weights={name.partition("/")[2]: weights[name] for name in outside})
    except ModelError as error:
        raise LoweringError(f"What can't be lowered can't run on onnxruntime either: {error}") from error
    return Part("onnxruntime", data, list(section.inputs), list(section.outputs), outside)


def kernels_of(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a target's report says of its kernels, by name."""
    found = report.get("kernels") or report.get("cpu", {}).get("kernels", {})
    return found if isinstance(found, Mapping) else {}


def _account(
    model: ir.Model, built: list[tuple[Section, Program | ir.Model]], blamed: Mapping[str, str]
) -> dict[str, Any]:
    nodes = list(model.graph)
    there = [nodes[k] for section, part in built if not isinstance(part, Program) for k in section.nodes]
    reasons: dict[str, list[str]] = {}
    for node in there:
        why = blamed.get(str(node.name), f"{node.op_type} (too little to compile apart)")
        reasons.setdefault(why, []).append(str(node.name))
    return {"nodes": len(there), "of": len(nodes), "parts": len(built), "reasons": reasons}


def _note(account: Mapping[str, Any]) -> str:
    """The account in one line, the most frequent reasons first."""
    ranked = sorted(account["reasons"].items(), key=lambda item: -len(item[1]))
    shown = ", ".join(f"{len(names)} {why}" if len(names) > 1 else why for why, names in ranked[:8])
    more = f" and {len(ranked) - 8} more kinds" if len(ranked) > 8 else ""
    return f"{account['nodes']} of {account['of']} nodes on onnxruntime: {shown}{more}"
