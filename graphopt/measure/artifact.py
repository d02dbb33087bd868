"""An artifact beside onnxruntime on the model it was compiled from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.measure.latency import bench


def bench_artifact(
    path: str | Path, *, threads: int = 1, feeds: str | Path | None = None, seconds: float = 3.0
) -> dict[str, Any]:
    """Time the artifact at `path` and onnxruntime, all its optimisations on, with as many threads each.

    onnxruntime runs the model as it was before any pass. `feeds` is an ``.npz`` with the inputs; default:
    random values, one sample. A ``ratio`` above 1 says that graphopt is faster.

    Raises:
        ArtifactError: the artifact can't be read or run here.
        DataError: the inputs don't fit.
        UsageError: so many threads can't be had.
    """
    from graphopt import artifact, oracle

    with artifact.load(path, threads=threads) as program:
        model = program.graph("before")
        arrays = _feeds(model, feeds)
        session = oracle.Session(model, threads=threads, optimised=True)
        ours, theirs = bench(
            {"graphopt": program.run, "onnxruntime": session.run}, arrays, baseline="onnxruntime", seconds=seconds
        )
    return {
        "graphopt_ms": ours.median_ms,
        "onnxruntime_ms": theirs.median_ms,
        "ratio": ours.ratio,
        "ratio_p10": ours.ratio_p10,
        "ratio_p90": ours.ratio_p90,
        "rounds": ours.rounds,
        "threads": threads,
    }


def _feeds(model: ir.Model, path: str | Path | None) -> dict[str, Any]:
    from graphopt.data.files import read_npz
    from graphopt.data.random import random_feeds

    if path is not None:
        return read_npz(Path(path))
    return random_feeds(model, dims={_first_dim(value): 1 for value in model.graph.inputs})


def _first_dim(value: ir.Value) -> str:
    dim = value.shape[0] if value.shape else 1
    return str(dim if isinstance(dim, int) else dim.value)
