"""An artifact beside other ways to run the model it was compiled from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.graph.absent import draw
from graphopt.measure.latency import Runner, bench

if TYPE_CHECKING:
    from graphopt.artifact import Executable


def bench_artifact(
    path: str | Path,
    *,
    against: Sequence[str] = (),
    threads: int = 1,
    feeds: str | Path | None = None,
    source: str | Path | None = None,
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Time the artifact at `path` and each rival in `against` (see `rivals`), with as many threads each.

    None named: onnxruntime; for a GPU's artifact with its CUDA provider, if that is installed. Results are numpy's
    arrays on the host, so each time ends when the device is done, and has both copies in it.
    The rivals run the model as it was before any pass: `source`, or what the artifact kept of it, with random weights
    in place of those that it was made without. `feeds` is an ``.npz`` with the inputs; default: random values, one
    sample. The row is `compare`'s, and ``drawn_weights``: how many of the rivals' weights are random,
    ``device``: the artifact's.

    Raises:
        ArtifactError: the artifact can't be read or run here.
        DataError: the inputs don't fit.
        UsageError: so many threads can't be had, or no such rival.
        ModelError: a rival refuses the model, or `source` can't be read.
        HostError: onnxruntime's CUDA provider can't run here.
    """
    from graphopt import artifact
    from graphopt.measure.rivals import open_rivals, usual

    with artifact.load(path, threads=threads) as program:
        model = program.graph("before") if source is None else _bound(source, program)
        drawn = draw(model)
        rivals = open_rivals(against or [usual(program.manifest.device)], model, threads)
        row = compare(program, rivals, artifact_feeds(model, feeds), seconds)
        return row | {"drawn_weights": drawn, "device": program.manifest.device}


def _bound(source: str | Path, program: Executable) -> ir.Model:
    """The model at `source`, its open sizes those that `program` was compiled for."""
    from graphopt.api import open_model
    from graphopt.graph import bind_dims

    model = open_model(source)
    known = {spec.name: spec.shape or [] for spec in program.inputs}
    sizes = {
        str(dim.value): size
        for value in model.graph.inputs
        for dim, size in zip(value.shape or (), known.get(str(value.name), []), strict=False)
        if not isinstance(dim, int) and isinstance(size, int)
    }
    bind_dims(model, sizes)
    return model


def compare(
    program: Executable, rivals: Mapping[str, Runner], feeds: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Interleave `program` and `rivals` on `feeds` for `seconds`.

    Keys: ``graphopt_ms`` and for each rival ``NAME_ms`` (medians, with ``.._p10`` and ``.._p90``); ``ratios`` (rival
    -> median over rounds of its time / graphopt's; above 1: graphopt is faster); ``ratio``, ``ratio_p10`` and
    ``ratio_p90`` of the first rival; ``rounds`` and ``threads``.

    Raises:
        UsageError: no rivals.
        DataError: the inputs don't fit.
    """
    if not rivals:
        raise UsageError("There is nothing to compare the artifact with: name at least one rival.")
    rows = bench({"graphopt": program.run, **rivals}, feeds, baseline="graphopt", seconds=seconds)
    first = rows[1]
    result: dict[str, Any] = {}
    for row in rows:
        result |= {f"{row.name}_ms": row.median_ms, f"{row.name}_p10": row.p10_ms, f"{row.name}_p90": row.p90_ms}
    return result | {
        "ratio": 1 / first.ratio,
        "ratio_p10": 1 / first.ratio_p90,
        "ratio_p90": 1 / first.ratio_p10,
        "ratios": {row.name: 1 / row.ratio for row in rows[1:]},
        "rounds": first.rounds,
        "threads": program.threads,
    }


def artifact_feeds(model: ir.Model, path: str | Path | None) -> dict[str, Any]:
    """Inputs for `model` from an ``.npz``, else random ones of one sample."""
    from graphopt.data.files import read_npz
    from graphopt.data.random import random_feeds

    if path is not None:
        return read_npz(Path(path))
    return random_feeds(model, dims={_first_dim(value): 1 for value in model.graph.inputs})


def _first_dim(value: ir.Value) -> str:
    dim = value.shape[0] if value.shape else 1
    return str(dim if isinstance(dim, int) else dim.value)
