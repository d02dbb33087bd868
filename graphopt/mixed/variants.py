"""Programs for the sizes that a model lists of its open dimensions, beside the one for all others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.base import Context, Part, Program, Target, Variant
from graphopt.graph import bind_dims, declared_dims
from graphopt.graph.dims import cases
from graphopt.mixed.build import build_one, kernels_of
from graphopt.packed import to_bytes

if TYPE_CHECKING:
    import numpy as np


def build(target: Target, model: ir.Model, context: Context, *, fallback: bool = True) -> Program:
    """What `target` makes of `model`; with `fallback`, nodes that it refuses run on onnxruntime.

    The report of a program of parts has ``onnxruntime``: how many of how many nodes run there, and why. For sizes that
    the model lists of its dimensions there are programs of their own (``variants`` in the report).

    Raises:
        LoweringError: naming what can't be lowered, where `fallback` is false or onnxruntime refuses it too.
    """
    *special, general = cases(declared_dims(model))
    program = build_one(target, _fixed(model, general), context, fallback)
    tensors = {_digest(array): array for array in program.weights.values()} if special else {}
    for sizes in special:
        own = build_one(target, _fixed(model, sizes), context, fallback)
        _add(program, own, sizes, tensors)
    return program


def _fixed(model: ir.Model, sizes: Mapping[str, int]) -> ir.Model:
    if not sizes:
        return model
    model = model.clone()
    bind_dims(model, sizes)
    return model


def _digest(array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, hashlib.sha256(to_bytes(array)).digest()


def _add(program: Program, own: Program, sizes: dict[str, int], tensors: dict[Any, np.ndarray]) -> None:
    """Make `own` a variant of `program`; a weight that is already among `tensors` is held once."""
    index = len(program.variants)
    weights = {name: tensors.setdefault(_digest(array), array) for name, array in own.weights.items()}
    parts = own.parts or [Part("library", own.library, own.inputs, own.outputs, list(own.weights), own.direct)]
    program.variants.append(Variant(sizes, own.entry, parts, weights, own.packed))
    program.cpu_features = sorted({*program.cpu_features, *own.cpu_features})
    program.files.update({f"variant{index}/{name}": data for name, data in own.files.items()})
    report = {key: value for key, value in own.report.items() if key not in ("kernels", "notes")}
    program.report.setdefault("variants", []).append({"sizes": sizes, **report})
    if isinstance(kernels := program.report.get("kernels"), dict):
        kernels.update({f"variant{index}/{name}": row for name, row in kernels_of(own.report).items()})
    said = ", ".join(f"{name}={size}" for name, size in sizes.items())
    notes = [f"for {said}: {note}" for note in own.report.get("notes", [])]
    program.report["notes"] = [*program.report.get("notes", []), *(notes or [f"for {said}: a program of its own"])]
