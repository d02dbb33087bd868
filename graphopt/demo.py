"""The main job on a reference model: each pass and each target, with what it did to size, speed and accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import UsageError
from graphopt.measure import bench, evaluate

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.artifact import Executable
    from graphopt.base import Pass
    from graphopt.models import Evaluation, ReferenceModel
    from graphopt.oracle import Session
    from graphopt.pipeline import Result as PipelineResult
    from graphopt.pipeline import Step

PIPELINE = (
    "fold-batch-norm,"
    'substitute-distilled{student=narrow,regions=2,max_macs=0.5,max_error=0.3,target="llvm{threads=1}"},'
    "prune-magnitude{sparsity=0.3,scope=global},insert-qdq"
)
TARGETS = ("llvm", "cuda", "npu")


@dataclasses.dataclass
class Stage:
    """The graph after one pass. Ratios compare latency at batch 1, one thread, with onnxruntime on the float model.

    `metric`: of the graph in onnxruntime, on held-out labels. `macs`: for one sample.
    """

    name: str
    graph: Path
    nodes: int
    parameters: int
    zeros: float
    weight_bytes: int
    macs: int
    metric: float
    onnxruntime_ratio: float
    llvm_ratio: float
    notes: list[str] = dataclasses.field(default_factory=list[str])


@dataclasses.dataclass
class Built:
    """The final graph on one target. `metric` and `ratio` are None where it could not be run here."""

    name: str
    artifact: Path
    artifact_bytes: int
    metric: float | None
    ratio: float | None
    notes: list[str] = dataclasses.field(default_factory=list[str])


def run_demo(
    model: ReferenceModel,
    folder: Path,
    pipeline: Sequence[Pass],
    targets: Sequence[str] = TARGETS,
    seconds: float = 1.0,
) -> Iterator[Stage | Built]:
    """Yield the float baseline, a `Stage` after each pass, and a `Built` for each target, as they are done.

    Leaves ``NN-pass.onnx``, ``TARGET.gopt`` and, of llvm, ``report.html`` in `folder`.
    `seconds`: how long each latency is measured.

    Raises:
        UsageError: the model has no labelled data, or no calibration data.
    """
    from graphopt import oracle
    from graphopt.api import open_model, run_pipeline

    if model.evaluation is None or model.calibration is None:
        raise UsageError(f"the demo needs labelled and calibration data, and {model.name!r} does not have both.")
    folder.mkdir(parents=True, exist_ok=True)
    evaluation, feeds = model.evaluation(), model.example(1)
    before = open_model(model.path())
    baseline = oracle.Session(before, optimised=True)
    stage = _stage(
        "float baseline", None, before, before, folder / "00-float.onnx", baseline, evaluation, feeds, seconds
    )
    yield stage
    current, steps, score = before, list[Any](), stage.metric
    for number, pass_ in enumerate(pipeline, 1):
        result = run_pipeline(current, [pass_], calibration=model.calibration)
        current, steps = result.model, [*steps, *result.steps]
        path = folder / f"{number:02}-{pass_.name}.onnx"
        stage = _stage(pass_.name, result.steps[0], before, current, path, baseline, evaluation, feeds, seconds)
        result.steps[0].facts["score"] = {
            "metric": evaluation.metric, "n": evaluation.n, "before": score, "value": stage.metric,
        }  # fmt: skip
        score = stage.metric
        yield stage
    from graphopt.pipeline import Result

    for target in targets:
        yield _built(target, before, Result(current, steps), folder, baseline, evaluation, feeds, seconds)
    if "llvm" in targets:
        _report(folder, next(evaluation.feeds()), seconds)


def _report(folder: Path, feeds: dict[str, Any], seconds: float) -> None:
    """``report.html``: the llvm artifact, with errors on labelled samples."""
    from graphopt import report

    report.write(report.of_artifact(folder / "llvm.gopt", feeds=feeds, seconds=seconds), folder / "report.html")


def _stage(
    name: str,
    step: Step | None,
    before: ir.Model,
    model: ir.Model,
    path: Path,
    baseline: Session,
    evaluation: Evaluation,
    feeds: Any,
    seconds: float,
) -> Stage:
    from graphopt import api, graph, oracle
    from graphopt.graph.cost import cost
    from graphopt.pipeline import Result

    graph.save(model, path)
    session = oracle.Session(model, optimised=True)
    program = api.compile_result(before, Result(model, []), "llvm{threads=1}", threads=1)
    rows = bench({"baseline": baseline.run, "onnxruntime": session.run, "llvm": program.run}, feeds, seconds=seconds)
    total = cost(model)
    notes = [f"left {s.node}: {s.reason}" for s in step.report.skipped] if step is not None else []
    if step is not None and not step.changed:
        notes.insert(0, "changed nothing")
    return Stage(
        name=name,
        graph=path,
        nodes=len(total.nodes),
        parameters=total.parameters,
        zeros=_zeros(model),
        weight_bytes=total.weight_bytes,
        macs=total.macs,
        metric=evaluate(session.run, evaluation),
        onnxruntime_ratio=rows[1].ratio,
        llvm_ratio=rows[2].ratio,
        notes=notes,
    )


def _built(
    target: str,
    before: ir.Model,
    result: PipelineResult,
    folder: Path,
    baseline: Session,
    evaluation: Evaluation,
    feeds: Any,
    seconds: float,
) -> Built:
    from graphopt import api, artifact
    from graphopt.errors import ArtifactError
    from graphopt.pipeline import Result

    path = folder / f"{target}.gopt"
    single = target == "npu"  # its command streams have fixed shapes: one sample at a time
    if single:
        result = Result(_one_sample(result.model), result.steps)
    program, parts = api.build(before, result, target)
    artifact.write(path, program, **parts, keep_source=True)  # its report shows weights and errors
    built = Built(target, path, path.stat().st_size, None, None, list(program.report.get("notes", [])))
    try:
        executable = artifact.load(path, threads=1)
    except ArtifactError as error:
        built.notes.append(f"not run: {error}")
        return built
    with executable:
        built.metric = evaluate(_sample_by_sample(executable.run) if single else executable.run, evaluation)
        if target == "llvm":
            built.ratio = _ratio(baseline, executable, feeds, seconds)
    return built


def _one_sample(model: ir.Model) -> ir.Model:
    from graphopt.graph import bind_dims

    model = model.clone()
    leading = [v.shape[0] for v in model.graph.inputs if v.shape]
    bind_dims(model, {str(dim): 1 for dim in leading if not isinstance(dim, int)})
    return model


def _sample_by_sample(run: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    def each(feeds: dict[str, Any]) -> dict[str, Any]:
        count = len(next(iter(feeds.values())))
        outputs = [run({name: array[i : i + 1] for name, array in feeds.items()}) for i in range(count)]
        return {name: np.concatenate([o[name] for o in outputs]) for name in outputs[0]}

    return each


def _ratio(baseline: Session, executable: Executable, feeds: Any, seconds: float) -> float:
    return bench({"baseline": baseline.run, "llvm": executable.run}, feeds, seconds=seconds)[1].ratio


def _zeros(model: ir.Model) -> float:
    """The share of zeros among the weights (floating point or int8 initializers with two or more dimensions)."""
    zeros = elements = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) >= 2:
            array = tensor.numpy()
            zeros += array.size - np.count_nonzero(array)
            elements += array.size
    return zeros / elements if elements else 0.0
