"""One reference model, compressed by one pipeline; prints a JSON row. `compression.py` runs it in its own process."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from sizes import free_sizes

from graphopt import api, models, oracle
from graphopt.errors import GraphoptError
from graphopt.graph import save
from graphopt.graph.cost import cost
from graphopt.measure import evaluate
from graphopt.measure.latency import bench
from graphopt.measure.rivals import open_rivals
from graphopt.models import ReferenceModel
from graphopt.pipeline import PRESETS, load_plugin

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
TRAINING = 4096
"""How many samples fine-tuning gets at most."""


def measure(
    reference: ReferenceModel, pipeline: str, threads: int, seconds: float, batch: int, fixed: bool
) -> dict[str, Any]:
    """Accuracy by onnxruntime on held-out labels, speed of the llvm target's programs, size of the ONNX files."""
    model = api.open_model(reference.path())
    example = reference.example(batch)
    if fixed:
        model = api.open_model(model, free_sizes(model, example))
    batches = _samples(reference, pipeline)
    plain = api.run_pipeline(model, PRESETS["O2"], verify=False).model
    start = time.perf_counter()
    small = api.run_pipeline(model, pipeline, calibration=batches, verify=False).model
    row: dict[str, Any] = {"pipeline": pipeline, "batch": batch, "seconds": time.perf_counter() - start}
    with tempfile.TemporaryDirectory() as folder:
        bytes_ = [save(m, Path(folder) / f"{k}.onnx").stat().st_size for k, m in enumerate((plain, small))]
    row["size_ratio"] = bytes_[1] / bytes_[0]
    row["macs_ratio"] = cost(small).macs / max(cost(plain).macs, 1)
    row |= _accuracy(reference, plain, small)
    return row | (_speed(model, plain, small, example, threads, seconds) if seconds else {})


def _samples(reference: ReferenceModel, pipeline: str) -> Iterable[Feeds]:
    """As many samples as the pipeline's passes look at; the model's calibration data where that is all there is."""
    wanted = max((int(n) for n in re.findall(r"samples=(\d+)", pipeline)), default=256)
    wanted = TRAINING if "fine-tune" in pipeline else wanted
    if reference.unlabelled is not None:
        return reference.unlabelled(wanted)
    return reference.calibration() if reference.calibration is not None else [reference.example(1)]


def _accuracy(reference: ReferenceModel, plain: ir.Model, small: ir.Model) -> dict[str, Any]:
    evaluation = reference.evaluation() if reference.evaluation is not None else None
    if evaluation is None:
        return {"metric": None, "n": 0}
    best: list[list[Array]] = []

    def run(model: ir.Model) -> float:
        session, kept = oracle.Session(model), list[Array]()
        best.append(kept)

        def keep(feeds: Feeds) -> Feeds:
            results = session.run(feeds)
            kept.append(next(iter(results.values())).argmax(axis=-1).reshape(-1))
            return results

        return evaluate(keep, evaluation)

    row: dict[str, Any] = {"metric": evaluation.metric, "n": evaluation.n}
    row |= {"float": run(plain), "compressed": run(small)}
    first, second = (np.concatenate(kept) for kept in best)
    return row | {"agreement": float((first == second).mean())}


def _speed(
    model: ir.Model, plain: ir.Model, small: ir.Model, example: Feeds, threads: int, seconds: float
) -> dict[str, Any]:
    """All take turns on the example, every free dimension bound to its size."""
    free = free_sizes(model, example)
    runners: dict[str, Any] = {}
    bytes_: dict[str, int] = {}
    for name, candidate in (("compressed", small), ("float", plain)):
        made = api.compile(candidate, f"llvm{{threads={threads}}}", PRESETS["O1"], dims=free, verify=False)
        runners[name] = made.run
        with tempfile.TemporaryDirectory() as folder:
            bytes_[name] = made.save(Path(folder) / "model.gopt").stat().st_size
    bound = api.open_model(model, free)
    runners["onnxruntime"] = open_rivals(["onnxruntime"], bound, threads)["onnxruntime"]
    rows = bench(runners, example, baseline="compressed", seconds=seconds)
    ratio = {row.name: 1 / row.ratio for row in rows}
    return {
        "speedup": ratio["float"],
        "speedup_vs_onnxruntime": ratio["onnxruntime"],
        "artifact_ratio": bytes_["compressed"] / bytes_["float"],
        "compressed_ms": rows[0].median_ms,
        "rounds": rows[0].rounds,
    }


def main() -> None:
    """Measure as the arguments say; a graphopt error becomes the row's ``error``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--fixed", action="store_true", help="free dimensions get the example's sizes first")
    asked = parser.parse_args()
    load_plugin(Path(__file__).with_name("naive.py"))
    row: dict[str, Any] = {"model": asked.model}
    try:
        row |= measure(models.get(asked.model), asked.pipeline, asked.threads, asked.seconds, asked.batch, asked.fixed)
    except GraphoptError as error:
        row["error"] = str(error)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
