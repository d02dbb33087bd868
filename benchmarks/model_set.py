"""Every reference model compiled alone for llvm, its open sizes left open, and run at several of them.

    python benchmarks/model_set.py                      # all models; the table of docs/coverage.md
    python benchmarks/model_set.py --models mnist --json

Each is compiled once (-O3, nothing on onnxruntime, each in a process of its own) and compared with onnxruntime on the
model as it was given, on real inputs of the model's `example`, cut to the sizes below. YOLOX has no open size.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

Row = dict[str, Any]
BATCHES = (1, 3)
CUTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "ocr-detector": ((320, 480), (256, 640)),
    "ocr-recogniser": ((48, 320), (48, 200)),
    "angle-classifier": ((48, 192), (48, 100)),
    "minilm-l3": ((64,), (17,)),
}
"""The last axes' sizes that go with `BATCHES`, for models in which they are open."""


def feeds(name: str) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """The inputs of each run."""
    from graphopt import models

    example = models.get(name).example
    largest = max(array.shape[0] for array in example(max(BATCHES)).values())
    for batch, cut in zip(BATCHES[:largest], CUTS.get(name, ((), ())), strict=False):
        corner = (..., *(slice(0, size) for size in cut))
        yield {key: np.ascontiguousarray(array[corner]) for key, array in example(batch).items()}


def row(name: str) -> Row:
    """Compile the model `name` and compare it; `error` is the largest of ``max|got - want| / max|want|``."""
    import graphopt
    from graphopt import models, oracle
    from graphopt.graph import load
    from graphopt.graph.shapes import open_dims
    from graphopt.pipeline.presets import preset

    model, start = load(models.get(name).path()), time.process_time()
    program = graphopt.compile(model, "llvm{threads=1}", preset("O3"), fallback=False, verify=False)
    seconds, session, worst, ran = time.process_time() - start, oracle.Session(model), 0.0, list[str]()
    for some in feeds(name):
        ran.append(" and ".join("x".join(map(str, array.shape)) for array in some.values()))
        for key, want in session.run(some).items():
            got = program.run(some)[key]
            assert (got.shape, got.dtype) == (want.shape, want.dtype), (name, key, got.shape, want.shape)
            worst = max(worst, float(np.abs(got - want).max() / np.abs(want).max()))
    return {"model": name, "open": sorted(open_dims(model)), "ran": ran, "error": worst, "cpu_s": round(seconds, 1)}


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| model | open sizes | run at | relative error | compile, CPU s |", "|---|--:|---|--:|--:|"]
    for found in rows:
        sizes = "; ".join(dict.fromkeys(found["ran"]))
        lines.append(
            f"| {found['model']} | {len(found['open'])} | {sizes} | {found['error']:.1e} | {found['cpu_s']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    from graphopt import models

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default=",".join(models.names()), help="names, comma-separated")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args()
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as process:
        found = list(process.map(row, asked.models.split(",")))
    print(json.dumps(found, indent=1) if asked.json else table(found))


if __name__ == "__main__":
    main()
