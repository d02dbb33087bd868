"""One reference model, compressed by some pipelines; prints a JSON row a line. `compression.py` starts it."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from sizes import free_sizes

from graphopt import api, models, oracle
from graphopt.data import open_data
from graphopt.errors import DataError, GraphoptError
from graphopt.graph import save
from graphopt.graph.cost import cost
from graphopt.measure import evaluate
from graphopt.measure.latency import bench
from graphopt.measure.rivals import open_rivals
from graphopt.pipeline import PRESETS, load_plugin

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
TRAINING = 4096
"""How many samples fine-tuning gets at most."""
ONNXSIM = "onnxsim:"
"""What a pipeline starts with that is onnxsim's pruning: of the part of the channels behind the colon."""


class Measured:
    """A reference model, and what is the same in all of its rows: the float model, its program, its scores."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.reference = models.get(asked.model)
        self.model = api.open_model(self.reference.path())
        if asked.fixed:
            self.model = api.open_model(self.model, free_sizes(self.model, self.reference.example(asked.batch[0])))
        self.plain = api.run_pipeline(self.model, PRESETS["O2"], verify=False).model

    @cached_property
    def evaluation(self) -> models.Evaluation | None:
        """What is scored: labels, or agreement where there are few of them."""
        made = self.reference.agreement or self.reference.evaluation
        return made and made()

    @cached_property
    def scores(self) -> tuple[float | None, Array]:
        """The float model's metric, and its answers."""
        return self.score(self.plain)

    @cached_property
    def rivals(self) -> list[tuple[Feeds, Any, int, Any]]:
        """For each number of samples the feeds, the float model's program, its artifact's size, and onnxruntime."""
        found: list[tuple[Feeds, Any, int, Any]] = []
        for batch in self.asked.batch:
            example = self.reference.example(batch)
            bound = api.open_model(self.model, free_sizes(self.model, example))
            ort = open_rivals(["onnxruntime"], bound, self.asked.threads)["onnxruntime"]
            found.append((example, *self.compiled(self.plain, example), ort))
        return found

    def row(self, pipeline: str) -> dict[str, Any]:
        """Accuracy by onnxruntime on held-out labels, speed of the llvm target's programs, size of the ONNX files.

        With `--keep`, the compressed model and all but its speed are taken from there, if they are there.
        """
        key = hashlib.sha256(f"{pipeline} {self.asked.fixed}".encode()).hexdigest()[:12]
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(self.asked.keep or folder) / f"{self.asked.model}-{key}.onnx"
            notes = kept.with_suffix(".json")
            if notes.exists():
                small, row = api.open_model(kept), json.loads(notes.read_text())
            else:
                kept.parent.mkdir(parents=True, exist_ok=True)
                start = time.perf_counter()
                small = self.compress(pipeline)
                row = {"pipeline": pipeline, "seconds": time.perf_counter() - start, **self.facts(small, kept)}
                notes.write_text(json.dumps(row))
        return row | {"batch": self.asked.batch[0]} | (self.speed(small) if self.asked.seconds else {})

    def compress(self, pipeline: str) -> ir.Model:
        """The model behind the pipeline."""
        data = samples(self.reference, pipeline)
        if pipeline.startswith(ONNXSIM):
            return by_onnxsim(self.asked.onnxsim, self.plain, data, pipeline.removeprefix(ONNXSIM))
        return api.run_pipeline(self.model, pipeline, calibration=data, verify=False).model

    def facts(self, small: ir.Model, path: Path) -> dict[str, Any]:
        """Sizes and scores; leaves the model at `path`."""
        whole = save(self.plain, path).stat().st_size
        row: dict[str, Any] = {"size_ratio": save(small, path).stat().st_size / whole}
        row["macs_ratio"] = cost(small).macs / max(cost(self.plain).macs, 1)
        if self.evaluation is None:
            return row | {"metric": None, "n": 0}
        evaluation, (metric, answers), (now, now_answers) = self.evaluation, self.scores, self.score(small)
        row |= {"metric": evaluation.metric, "n": evaluation.n, "float": metric, "compressed": now}
        return row | {"agreement": float((answers == now_answers).mean())}

    def score(self, model: ir.Model) -> tuple[float | None, Array]:
        """The metric on held-out labels, and where the first output is largest."""
        assert self.evaluation is not None
        session, answers = oracle.Session(model), list[Array]()

        def keep(feeds: Feeds) -> Feeds:
            results = session.run(feeds)
            answers.append(next(iter(results.values())).argmax(axis=-1).reshape(-1))
            return results

        return evaluate(keep, self.evaluation), np.concatenate(answers)

    def compiled(self, model: ir.Model, example: Feeds) -> tuple[Any, int]:
        """A runner, every free dimension of its size in `example`, and the bytes of its artifact."""
        target = f"llvm{{threads={self.asked.threads}}}"
        made = api.compile(model, target, PRESETS["O1"], dims=free_sizes(self.model, example), verify=False)
        with tempfile.TemporaryDirectory() as folder:
            return made.run, made.save(Path(folder) / "model.gopt").stat().st_size

    def speed(self, small: ir.Model) -> dict[str, Any]:
        """All take turns on the example, for each number of samples."""
        found: dict[str, Any] = {}
        for batch, (example, plain, whole, ort) in zip(self.asked.batch, self.rivals, strict=True):
            made, bytes_ = self.compiled(small, example)
            runners = {"compressed": made, "float": plain, "onnxruntime": ort}
            rows = bench(runners, example, baseline="compressed", seconds=self.asked.seconds)
            ratio = {row.name: 1 / row.ratio for row in rows}
            if found:
                found[f"speedup_batch_{batch}"] = ratio["float"]
                continue
            found = {
                "speedup": ratio["float"],
                "speedup_vs_onnxruntime": ratio["onnxruntime"],
                "artifact_ratio": bytes_ / whole,
                "compressed_ms": rows[0].median_ms,
                "rounds": rows[0].rounds,
            }
        return found


def samples(reference: models.ReferenceModel, pipeline: str) -> Iterable[Feeds]:
    """As many samples as the pipeline's passes look at; the model's calibration data where that is all there is."""
    wanted = max((int(n) for n in re.findall(r"samples=(\d+)", pipeline)), default=256)
    wanted = TRAINING if "fine-tune" in pipeline else wanted
    if reference.unlabelled is not None:
        return reference.unlabelled(wanted)
    return reference.calibration() if reference.calibration is not None else [reference.example(1)]


def by_onnxsim(python: str | None, model: ir.Model, data: Iterable[Feeds], sparsity: str) -> ir.Model:
    """onnxsim's channel pruning, by an interpreter that has it, of 64 samples of one shape."""
    if python is None:
        raise DataError("onnxsim's pruning needs --onnxsim: a Python that has onnxsim.")
    with tempfile.TemporaryDirectory() as folder:
        before, after, arrays = (Path(folder) / name for name in ("float.onnx", "pruned.onnx", "samples.npz"))
        pieces = [feeds for feeds, _ in zip(open_data(data, model).pieces(1), range(64), strict=False)]
        shapes = [[a.shape for a in feeds.values()] for feeds in pieces]
        pieces = [feeds for feeds, shape in zip(pieces, shapes, strict=True) if shape == shapes[0]]
        np.savez(arrays, allow_pickle=False, **{k: np.concatenate([feeds[k] for feeds in pieces]) for k in pieces[0]})
        save(model, before)
        script = str(Path(__file__).with_name("by_onnxsim.py"))
        command = [python, script, str(before), str(arrays), str(after), sparsity]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DataError((done.stderr.strip().splitlines() or ["onnxsim failed without a word"])[-1])
        return api.open_model(after)


def main() -> None:
    """Measure as the arguments say; a graphopt error becomes the row's ``error``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--pipeline", required=True, action="append")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, action="append", help="samples in a run; repeatable")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--fixed", action="store_true", help="free dimensions get the example's sizes first")
    parser.add_argument("--keep", help="a folder for compressed models and their rows")
    parser.add_argument("--onnxsim", help="a Python that has onnxsim")
    asked = parser.parse_args()
    load_plugin(Path(__file__).with_name("naive.py"))
    measured = Measured(asked)
    for pipeline in asked.pipeline:
        try:
            row = measured.row(pipeline)
        except GraphoptError as error:
            row = {"error": str(error)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
