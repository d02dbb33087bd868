"""What a report can draw on: the graphs, what the passes and the target said, and what was measured for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import GraphoptError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.compare import NodeError
    from graphopt.measure.by_node import ByNode
    from graphopt.measure.profile import Profile
    from graphopt.pipeline.driver import Result

    Feeds = str | Path | Mapping[str, Any] | None

RANDOM = "errors are those on random inputs: real ones come from --input FILE.npz, or --calibration with --html"
UNMEASURED = "nothing was measured for this report (--no-measure)"
WITHOUT_SOURCE = (
    "weights and nodes' errors are not shown: the artifact was made without them (graphopt compile --keep-source)"
)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Everything that a page is made from. `passes`: as `graphopt.api.step_report` gives them.

    `errors`: by the name of the node after. `machine`: the NPU's description. `notes`: what is missing, and why.
    """

    title: str
    after: ir.Model
    before: ir.Model | None = None
    passes: Sequence[Mapping[str, Any]] = ()
    target: str = ""
    account: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    machine: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    profile: Profile | None = None
    by_node: ByNode | None = None
    errors: Mapping[str, NodeError] = dataclasses.field(default_factory=dict[str, "NodeError"])
    notes: Sequence[str] = ()


def gather(
    model: str | Path,
    other: str | Path | None = None,
    *,
    feeds: Feeds = None,
    threads: int = 1,
    seconds: float = 1.0,
    measure: bool = True,
) -> Evidence:
    """Evidence from files: an artifact; an ONNX model; or the model before and, as `other`, after.

    Raises:
        ArtifactError, ModelError: a file can't be read.
        UsageError: an artifact and another file.
    """
    from graphopt.graph import load

    if Path(model).suffix == ".gopt":
        if other is not None:
            raise UsageError(f"{model} holds the graph before and after already: give it alone, or two ONNX models.")
        return of_artifact(model, feeds=feeds, threads=threads, seconds=seconds, measure=measure)
    if other is None:
        return Evidence(title=Path(model).name, after=load(model))
    found = Evidence(title=f"{Path(model).name} → {Path(other).name}", before=load(model), after=load(other))
    return with_errors(found, feeds) if measure else dataclasses.replace(found, notes=[UNMEASURED])


def of_result(title: str, before: ir.Model, result: Result, *, feeds: Feeds = None) -> Evidence:
    """Evidence from a pipeline that has just run; `feeds` as `with_errors` takes them."""
    from graphopt.api import step_report

    passes = [step_report(step) for step in result.steps]
    found = Evidence(title=title, before=before, after=result.model, passes=passes)
    return with_errors(found, feeds)


def of_artifact(
    path: str | Path,
    *,
    feeds: Feeds = None,
    graphs: tuple[ir.Model, ir.Model] | None = None,
    threads: int = 1,
    seconds: float = 1.0,
    measure: bool = True,
) -> Evidence:
    """What the artifact at `path` holds; with `measure`, also kernels' times here and each node's error.

    `feeds`: as `with_errors` takes them; kernels are timed on one random sample unless it is a file. `graphs`: those
    before and after the passes, with their weights, where they are at hand. What can't be measured becomes a note.

    Raises:
        ArtifactError: there is no such artifact, or it is damaged.
        DataError: `feeds` don't fit.
    """
    from graphopt import artifact

    held = artifact.read(path)
    before, after = graphs or (held.graph("before"), held.graph("after"))
    report, files = held.report, held.files
    found = Evidence(
        title=Path(path).name,
        before=before,
        after=after,
        passes=report.get("passes", []),
        target=held.manifest.target,
        account=report.get("target", {}),
        machine=json.loads(held.read_file("npu/machine.json")) if "npu/machine.json" in files else {},
    )
    if not measure:
        return dataclasses.replace(found, notes=[UNMEASURED])
    if "npu" in found.account:  # what a simulator takes says nothing of the machine: its cycles are in the account
        return with_errors(found, feeds)
    given = None if isinstance(feeds, Mapping) else feeds
    try:
        found = _timed(found, path, threads, given, seconds)
    except GraphoptError as error:
        found = dataclasses.replace(found, notes=[f"no kernel was timed: {error}"])
    return with_errors(found, feeds)


def _timed(found: Evidence, path: str | Path, threads: int, feeds: str | Path | None, seconds: float) -> Evidence:
    from graphopt.measure.by_node import profile_by_node
    from graphopt.measure.profile import profile_artifact

    kernels = profile_artifact(path, threads=threads, feeds=feeds, seconds=seconds / 2)
    by_node = profile_by_node(path, threads=threads, feeds=feeds, seconds=seconds / 2)
    return dataclasses.replace(found, profile=kernels, by_node=by_node)


def with_errors(found: Evidence, feeds: Feeds = None) -> Evidence:
    """`found` with each node's error, both graphs run on `feeds`; or with a note on why there is none.

    `feeds`: an .npz, or arrays by name; default: random ones, within the ranges that quantization saw at calibration.
    """
    from graphopt.compare import compare
    from graphopt.graph.absent import absent

    if found.before is None:
        return found
    notes = [] if feeds is not None else [RANDOM]
    if absent(found.before) or absent(found.after):
        return dataclasses.replace(found, notes=[*found.notes, WITHOUT_SOURCE])
    try:
        arrays = _arrays(found.before, found.passes, feeds)
        errors = {one.node: one for one in compare(found.before, found.after, [arrays]).nodes}
    except GraphoptError as error:
        errors, notes = {}, [f"no node's error is known: {error}"]
    return dataclasses.replace(found, errors=errors, notes=[*found.notes, *notes])


def _arrays(model: ir.Model, passes: Sequence[Mapping[str, Any]], feeds: Feeds) -> dict[str, Any]:
    from graphopt.measure.artifact import artifact_feeds

    if isinstance(feeds, Mapping):
        return dict(feeds)
    arrays = artifact_feeds(model, feeds)
    if feeds is None:
        rng = np.random.default_rng(0)
        for name, (low, high) in _ranges(passes).items():
            if name in arrays and arrays[name].dtype.kind == "f":
                arrays[name] = rng.uniform(low, high, arrays[name].shape).astype(arrays[name].dtype)
    return arrays


def _ranges(passes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Value -> range, as the first pass that calibrated says."""
    for step in passes:
        said = step.get("facts", {}).get("ranges")
        if isinstance(said, Mapping):
            return {str(name): (float(ends[0]), float(ends[1])) for name, ends in said.items()}
    return {}
