"""The driver: runs passes in order over a copy of the model, with observers around each."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from onnx_ir.passes import common

from graphopt.base import Context, Pass, Report
from graphopt.errors import GraphoptError, PassError
from graphopt.graph import provenance
from graphopt.graph.edit import forget_names
from graphopt.graph.shapes import keep_dims

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclasses.dataclass
class Step:
    """What one pass did and cost. `facts` are the observers' (peak memory, numeric error...)."""

    pass_: Pass
    report: Report
    changed: bool
    seconds: float
    facts: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass
class Result:
    """The optimised model and the account of each pass."""

    model: ir.Model
    steps: list[Step]


class Observer(Protocol):
    """Sees every pass before and after it runs, and its failure; may raise to stop the pipeline."""

    def before(self, model: ir.Model, remaining: Sequence[Pass]) -> None:
        """`remaining[0]` is about to run on `model`."""

    def after(self, model: ir.Model, step: Step) -> None:
        """`step.pass_` has run; `model` is its result."""

    def failed(self, error: GraphoptError) -> None:
        """The pass announced last, or an observer after it, raised `error`."""


@dataclasses.dataclass(frozen=True)
class _State:
    """The graph before a pass: what tells whether it changed, where its nodes came from, what its outputs are."""

    fingerprint: int
    known: provenance.Snapshot
    declared: dict[str, ir.Shape]


def run(
    model: ir.Model, passes: Sequence[Pass], context: Context | None = None, observers: Iterable[Observer] = ()
) -> Result:
    """Run `passes` over a copy of `model` (in normal form; see `graphopt.graph.load`).

    After each pass names are made unique and provenance is completed; a pass that left nothing different is
    marked unchanged whatever it reports.

    Raises:
        PassError: a pass failed; and what the observers raise.
    """
    context = context or Context()
    context = dataclasses.replace(context, original=context.original or model)
    model = model.clone()
    observers = list(observers)
    steps: list[Step] = []
    state = _state(model)
    for index, pass_ in enumerate(passes):
        try:
            for observer in observers:
                observer.before(model, passes[index:])
            report, seconds = _apply(pass_, model, context)
            changed = _fingerprint(model) != state.fingerprint
            if changed:
                common.NameFixPass()(model)
                keep_dims(model, state.declared)
                provenance.stamp(model, state.known, pass_.name)
                state = _state(model)
            step = Step(pass_, report, changed, seconds)
            for observer in observers:
                observer.after(model, step)
        except GraphoptError as error:
            for observer in observers:
                observer.failed(error)
            raise
        steps.append(step)
    return Result(model, steps)


def _state(model: ir.Model) -> _State:
    declared = {str(value.name): value.shape for value in model.graph.outputs if value.shape is not None}
    return _State(_fingerprint(model), provenance.snapshot(model), declared)


def _apply(pass_: Pass, model: ir.Model, context: Context) -> tuple[Report, float]:
    """The pass's report, and the seconds it took."""
    forget_names(model)
    start = time.perf_counter()
    try:
        report = pass_.apply(model, context)
        seconds = time.perf_counter() - start
    except GraphoptError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise PassError(
            f"pass {pass_.name!r} failed at {Path(last.filename).name}:{last.lineno}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(report, Report):  # pyright: ignore[reportUnnecessaryIsInstance]  # plugins are not type-checked
        raise PassError(f"pass {pass_.name!r} must return a graphopt.Report, not {type(report).__name__}.")
    return report, seconds


def _fingerprint(model: ir.Model) -> int:
    """A number that differs when nodes, edges, attributes or weights of the graph do (weights by identity)."""
    parts: list[object] = []
    for graph in model.graphs():
        parts.extend(v.name for v in (*graph.inputs, *graph.outputs))
        parts.extend((name, id(v.const_value)) for name, v in graph.initializers.items())
        for node in graph:
            parts.append((node.domain, node.op_type))
            parts.append(tuple(v and v.name for v in node.inputs))
            parts.append(tuple(v.name for v in node.outputs))
            parts.extend((name, id(a)) for name, a in node.attributes.items())
    return hash(tuple(parts))
