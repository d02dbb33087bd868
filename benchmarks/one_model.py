"""One reference model, compiled and timed; prints a JSON row. `latency.py` runs it in a process of its own."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from sizes import free_sizes

import graphopt
from graphopt import api, models
from graphopt.errors import GraphoptError
from graphopt.graph import bind_dims
from graphopt.measure.artifact import compare
from graphopt.measure.rivals import open_rivals
from graphopt.models import ReferenceModel
from graphopt.pipeline import preset


def measure(reference: ReferenceModel, threads: int, batch: int, against: list[str], seconds: float) -> dict[str, Any]:
    """The row of a model: every free dimension of its inputs is bound to the example's size, for all alike."""
    feeds = reference.example(batch)
    before = api.open_model(reference.path())
    free = free_sizes(before, feeds)
    if batch != 1 and not free:
        raise graphopt.errors.UsageError("its batch is fixed in the model")
    bind_dims(before, free)
    start = time.perf_counter()
    result = api.run_pipeline(before, preset("O2"), verify=False)
    program = api.compile_result(before, result, f"llvm{{threads={threads}}}", threads=threads)
    compile_s = time.perf_counter() - start
    rivals = open_rivals(against, before, threads)
    ours, theirs = program.run(feeds), rivals["onnxruntime"](feeds)
    row = compare(program, rivals, feeds, seconds)
    return {
        "graphopt_ms": row["graphopt_ms"],
        **{f"{name}_ms": row[f"{name}_ms"] for name in against},
        "ratio": row["ratio"],
        "ratio_p10": row["ratio_p10"],
        "ratio_p90": row["ratio_p90"],
        **{f"ratio_{name}": row["ratios"][name] for name in against[1:]},
        "rounds": row["rounds"],
        "max_relative_error": max(_relative_error(ours[name], expected) for name, expected in theirs.items()),
        "compile_s": compile_s,
    }


def _relative_error(got: Any, expected: Any) -> float:
    """``max|got - expected| / max|expected|``."""
    if not np.size(expected):
        return 0.0
    scale = np.abs(expected.astype(np.float64)).max() or 1.0
    return float(np.abs(got.astype(np.float64) - expected).max() / scale)


def main() -> None:
    """Measure as the arguments say; a graphopt error becomes the row's ``error``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--against", nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    asked = parser.parse_args()
    row: dict[str, Any] = {"model": asked.model, "threads": asked.threads, "batch": asked.batch}
    try:
        row |= measure(models.get(asked.model), asked.threads, asked.batch, asked.against, asked.seconds)
    except GraphoptError as error:
        row["error"] = str(error)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
