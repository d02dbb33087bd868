"""Latency of the reference models through graphopt's llvm target beside onnxruntime, in float32.

    python benchmarks/latency.py                                     # the whole set, 1 thread, batch 1
    python benchmarks/latency.py --models resnet50,yolox --threads 1,2 --batch 1,8 --json
    python benchmarks/latency.py --vs openvino --out benchmarks/results/latency.json

Each model is compiled and measured in a process of its own; all its runners take turns in there, and a ratio is the
median over rounds of (rival's time / graphopt's time). ``--out`` keeps rows and machine, and draws them beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from describe import machine, versions
from show import draw, geometric_mean, table

from graphopt import models


def rows(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The row of each model, number of threads and batch; a row with ``error`` where one fails."""
    for name in asked.models or models.names():
        for threads in asked.threads:
            for batch in asked.batch:
                yield measure(name, threads, batch, ["onnxruntime", *asked.vs], asked.seconds, asked.timeout)


def measure(name: str, threads: int, batch: int, against: list[str], seconds: float, timeout: float) -> dict[str, Any]:
    """One row, measured by `one_model.py`."""
    command = [sys.executable, str(Path(__file__).with_name("one_model.py")), name, "--against", *against]
    command += ["--threads", str(threads), "--batch", str(batch), "--seconds", str(seconds)]
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "TVM_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    row = {"model": name, "threads": threads, "batch": batch}
    try:
        done = subprocess.run(command, env=environment, timeout=timeout, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        return row | {"error": f"not done after {timeout:g} s"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        reason = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        return row | {"error": reason[0]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=_names, help="comma-separated; default: all of `graphopt models`")
    parser.add_argument("--threads", type=_numbers, default=[1], help="comma-separated numbers of threads")
    parser.add_argument("--batch", type=_numbers, default=[1], help="comma-separated batch sizes")
    parser.add_argument(
        "--vs", action="append", default=[], choices=["openvino", "tvm"], help="another rival; repeatable"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure a row")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which a row is given up")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--out", type=Path, help="write rows, machine and versions to this .json; a plot beside it")
    asked = parser.parse_args()
    measured: list[dict[str, Any]] = []
    for row in rows(asked):
        measured.append(row)
        said = row.get("error") or f"{row['graphopt_ms']:.3g} ms, ratio {row['ratio']:.2f}"
        if asked.out is not None:
            keep(measured, asked.out)
        print(f"{row['model']}, threads {row['threads']}, batch {row['batch']}: {said}", file=sys.stderr, flush=True)
    print(json.dumps(measured, indent=1) if asked.json else table(measured))
    sys.exit(any("error" in row for row in measured))


def keep(measured: list[dict[str, Any]], path: Path) -> None:
    """Write the rows so far with machine and versions to `path`, and draw them beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"machine": machine(), "versions": versions(), "geometric_mean": geometric_mean(measured)}
    path.write_text(json.dumps(whole | {"rows": measured}, indent=1) + "\n")
    draw(measured, path.with_suffix(".svg"))


def _names(text: str) -> list[str]:
    return [models.get(name.strip()).name for name in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
