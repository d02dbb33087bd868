"""What most programs need: `optimize`, `compile`, `export`; `load` is in `graphopt.artifact`, which needs no ONNX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import onnx_ir as ir

from graphopt.base import Context, Pass, Program, Target
from graphopt.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from graphopt.artifact import Executable
    from graphopt.data import Source
    from graphopt.pipeline.driver import Observer, Result, Step
    from graphopt.sizes import Given

    AnyModel = str | Path | ir.Model | onnx.ModelProto
    AnyPipeline = str | Sequence[Pass]


def optimize(
    model: AnyModel,
    pipeline: AnyPipeline = "",
    *,
    calibration: Source | None = None,
    seed: int = 0,
    dims: Mapping[str, Given] | None = None,
    verify: bool = True,
) -> ir.Model:
    """Run a pipeline of passes over a model; the model given is left as it is.

    Args:
        model: a path, an `onnx.ModelProto` or an `onnx_ir.Model`.
        pipeline: text such as ``"fold-batch-norm,insert-qdq"``, or passes.
        calibration: see `graphopt.data.open_data`; passes that need data say so.
        seed: for passes that draw random numbers.
        dims: sizes of open dimensions, ``{"N": 1}``; or which they may have when it runs, ``{"N": (1, 64)}``, multiples
            ``{"T": (16, 512, 16)}``, or with programs of their own for some ``{"N": [1, 8, "*"]}``.
        verify: after each pass, compare onnxruntime's outputs with those before it, as the pass declares.

    Raises:
        GraphoptError: see `graphopt.errors`.
    """
    return run_pipeline(model, pipeline, calibration=calibration, seed=seed, dims=dims, verify=verify).model


def compile(
    model: AnyModel,
    target: str | Target = "llvm",
    pipeline: AnyPipeline = "",
    *,
    calibration: Source | None = None,
    seed: int = 0,
    dims: Mapping[str, Given] | None = None,
    verify: bool = True,
    keep_source: bool = False,
    fallback: bool = True,
    values: Mapping[str, Any] | None = None,
) -> Executable:
    """Optimise `model`, lower it to `target` (``"llvm{mcpu=native}"``), and give what `load` gives.

    The other arguments are those of `optimize`. Keep the result with ``.save("model.gopt")``; `keep_source` has it
    hold the weights of both graphs too, not only those that the program runs on.

    `fallback`: nodes that the target can't lower run on onnxruntime, inside the same artifact; its report says which.

    `values`: inputs known now (axes, sizes), ``{"axes": [1]}``; they become constants and are no inputs any more.

    Raises:
        GraphoptError: see `graphopt.errors`; `LoweringError` for what can't be lowered without `fallback`.
    """
    from graphopt.pipeline.registry import make_target

    before = open_model(model, dims, values)
    target = make_target(target) if isinstance(target, str) else target
    result = run_opened(before, pipeline, calibration=calibration, seed=seed, verify=verify, target=target)
    return compile_result(before, result, target, seed=seed, keep_source=keep_source, fallback=fallback)


def fine_tune(
    model: AnyModel,
    calibration: Source,
    *,
    teacher: AnyModel | None = None,
    labels: np.ndarray[Any, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> ir.Model:
    """Train the weights of `model` toward the outputs of `teacher`, and `labels`; the models given stay as they are.

    Args:
        model: what is trained, a pruned or otherwise changed form of `teacher`.
        calibration: inputs; see `graphopt.data.open_data`.
        teacher: a model of the same inputs and outputs; without one, labels are needed.
        labels: for each sample the class (integers), or the value the first output should have.
        seed: of the order of the samples and of their mixtures.
        options: see `graphopt.training.settings.Settings`: epochs, lr, batch, ...

    Raises:
        DataError, LoweringError, UsageError: see `graphopt.training.fit`.
    """
    from graphopt.data import open_data
    from graphopt.passes.fine_tune import FineTune
    from graphopt.pipeline.registry import make_pass
    from graphopt.pipeline.spec import Item
    from graphopt.training.fit import fit

    student = open_model(model)
    original = None if teacher is None else open_model(teacher)
    settings = make_pass(Item(FineTune.name, options))
    assert isinstance(settings, FineTune)
    fit(student, original, open_data(calibration, student), settings, labels=labels, seed=seed)
    return student


def export(artifact: str | Path, folder: str | Path, *, name: str = "model") -> dict[str, Any]:
    """Write ``libNAME.a``, ``NAME.h`` and an example for the model of an artifact compiled for llvm, to call from C.

    It is compiled anew, for the artifact's CPU and one thread; neither Python nor TVM is needed to run it. Returns what
    was written: the library's path, its bytes, those of the workspace, and the command that builds the example.

    Raises:
        ArtifactError: the artifact can't be read, or was made without its source.
        LoweringError: its dimensions are open, parts of it need TVM's runtime, or there is no compiler for its CPU.
        UsageError: it was compiled for another target, or the name or folder can't be used.
    """
    import dataclasses

    from graphopt import artifact as artifacts
    from graphopt.pipeline.registry import make_target
    from graphopt.targets.llvm import Llvm
    from graphopt.targets.llvm.static import export as write

    opened = artifacts.read(artifact)
    target = make_target(opened.manifest.target)
    if not isinstance(target, Llvm):
        raise UsageError(f"{artifact} was compiled for {target.name}, and only llvm gives a static library.")
    return write(opened.graph_with_weights("after"), dataclasses.replace(target, threads=1), Path(folder), name)


def open_model(
    model: AnyModel, dims: Mapping[str, Given] | None = None, values: Mapping[str, Any] | None = None
) -> ir.Model:
    """`model` in normal form, `values` and `dims` bound or declared; an `onnx_ir.Model` given is copied."""
    from graphopt import graph

    if isinstance(model, (str, Path)):
        opened = graph.load(model)
    elif isinstance(model, ir.Model):
        opened = graph.normalise(model.clone())
    else:
        opened = graph.from_proto(model)
    graph.bind_values(opened, values or {})
    graph.declare_dims(opened, dims or {})
    return opened


def run_pipeline(
    model: AnyModel,
    pipeline: AnyPipeline,
    *,
    calibration: Source | None = None,
    seed: int = 0,
    dims: Mapping[str, Given] | None = None,
    verify: bool = True,
    observers: Iterable[Observer] = (),
    target: Target | None = None,
) -> Result:
    """What `optimize` does, with the account of each pass kept. `observers` come before the checks.

    `target`: what the result will be compiled for; passes may choose by it.
    """
    return run_opened(
        open_model(model, dims),
        pipeline,
        calibration=calibration,
        seed=seed,
        verify=verify,
        observers=observers,
        target=target,
    )


def run_opened(
    opened: ir.Model,
    pipeline: AnyPipeline,
    *,
    calibration: Source | None = None,
    seed: int = 0,
    verify: bool = True,
    observers: Iterable[Observer] = (),
    target: Target | None = None,
) -> Result:
    """`run_pipeline` on a model in normal form with its dimensions bound; it is not touched."""
    from graphopt.data import open_data
    from graphopt.pipeline import parse_pipeline, run
    from graphopt.pipeline.observers import MeasureMemory, MeasureSize, VerifyStructure

    passes = parse_pipeline(pipeline) if isinstance(pipeline, str) else list(pipeline)
    for pass_ in passes:
        if not isinstance(pass_, Pass):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            raise UsageError(
                f"a pipeline is text such as 'a,b{{x=1}}', or graphopt.Pass objects, not {type(pass_).__name__!r}."
            )
    batches = None if calibration is None else open_data(calibration, opened)
    context = Context(calibration=batches, seed=seed, target=target)
    checks: list[Observer] = [VerifyStructure(), MeasureMemory(), MeasureSize()]
    if verify and passes:
        checks.append(_numeric_check(opened, context))
    return run(opened, passes, context, [*observers, *checks])


def _numeric_check(model: ir.Model, context: Context) -> Observer:
    """Numbers are checked on the first calibration batch, else on random inputs."""
    from graphopt.data.random import random_feeds
    from graphopt.pipeline.observers import VerifyNumbers, uncheckable

    if context.calibration is not None:
        return VerifyNumbers(next(iter(context.calibration)))
    try:
        return VerifyNumbers(random_feeds(model, context.seed))
    except DataError as error:
        raise uncheckable(error) from error


class Parts(TypedDict):
    """What an artifact holds besides the program; see `graphopt.artifact.write`."""

    target: str
    before: ir.Model
    after: ir.Model
    report: dict[str, Any]


def build(
    before: ir.Model, result: Result, target: str | Target, *, seed: int = 0, fallback: bool = True
) -> tuple[Program, Parts]:
    """Lower the pipeline's result to `target`: the program, and the other parts for `graphopt.artifact.write`."""
    from graphopt import mixed
    from graphopt.pipeline.registry import make_target, spec_of

    target = make_target(target) if isinstance(target, str) else target
    program = mixed.build(target, result.model, Context(seed=seed), fallback=fallback)
    report = {"passes": [_repeatable(step_report(step)) for step in result.steps], "target": program.report}
    return program, Parts(target=str(spec_of(target)), before=before, after=result.model, report=report)


def compile_result(
    before: ir.Model,
    result: Result,
    target: str | Target,
    *,
    seed: int = 0,
    keep_source: bool = False,
    threads: int | None = None,
    fallback: bool = True,
) -> Executable:
    """What `compile` does once the passes have run."""
    from graphopt import artifact

    program, parts = build(before, result, target, seed=seed, fallback=fallback)
    return artifact.assemble(program, **parts, keep_source=keep_source, threads=threads)


def _repeatable(report: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was measured on the way: equal inputs and options give equal artifacts."""
    facts = {name: fact for name, fact in report["facts"].items() if name != "peak_rss_bytes"}
    return {key: value for key, value in report.items() if key != "seconds"} | {"facts": facts}


def step_report(step: Step) -> dict[str, Any]:
    """A pass's account as JSON-able data."""
    from graphopt.pipeline.registry import spec_of

    return {
        "pass": str(spec_of(step.pass_)),
        "preserves": str(step.pass_.preserves),
        "changed": step.changed,
        "seconds": step.seconds,
        "changes": [{"node": c.node, "action": c.action} for c in step.report.changes],
        "skipped": [{"node": s.node, "reason": s.reason} for s in step.report.skipped],
        "facts": {**step.report.facts, **step.facts},
    }
