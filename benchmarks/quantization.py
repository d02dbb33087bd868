"""Accuracy x speed x size of quantized reference models, beside the quantizers of onnxruntime and OpenVINO.

    python benchmarks/quantization.py                                   # the labelled models, all recipes
    python benchmarks/quantization.py --models digits,magika --recipes int8 --json
    python benchmarks/quantization.py --nncf nncf-env/bin/python --out benchmarks/results/quantization.json --resume

OpenVINO's quantizer is NNCF; it runs in an environment of its own (``python -m venv nncf-env``, then ``pip install nncf
openvino`` there), named by ``--nncf``. ``--resume`` keeps the rows that ``--out`` has already.

`float`, `quantized` and `onnxruntime_quantized` are the metric on held-out labels. `ratio_vs_X` is the median over
interleaved rounds of X's time / the time of graphopt's llvm program of the quantized model, above 1: it is faster.
`float` is graphopt's own float32 program, `NAME_same` the rival on the very same quantized ONNX file. `size_ratio`
is that of the ONNX files, `artifact_ratio` that of the `.gopt` files, `weights_ratio` that of what the programs keep.
A recipe is a preset or a pipeline.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from describe import machine, versions
from pareto import Point, draw, number

from graphopt import models

Row = dict[str, Any]
RECIPES = ["int8", "int8-dynamic", "int4-weights"]
KEYS = (
    "model", "recipe", "metric", "float", "quantized", "onnxruntime_quantized", "n", "ratio_vs_float",
    "ratio_vs_onnxruntime_float", "size_ratio",
)  # fmt: skip


def measure(name: str, recipe: str, asked: argparse.Namespace) -> Row:
    """One row, measured by `one_quantized.py`."""
    command = [sys.executable, str(Path(__file__).with_name("one_quantized.py")), name, "--recipe", recipe]
    command += ["--threads", str(asked.threads), "--seconds", str(asked.seconds), "--against", *asked.vs]
    command += ["--nncf", asked.nncf] if asked.nncf else []
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "TVM_NUM_THREADS": str(asked.threads),
        "OMP_NUM_THREADS": str(asked.threads),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    row: Row = dict.fromkeys(KEYS) | {"model": name, "recipe": recipe}
    try:
        done = subprocess.run(
            command, env=environment, timeout=asked.timeout, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return row | {"error": f"not done after {asked.timeout:g} s"}
    try:
        return row | json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        reason = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        return row | {"error": reason[0]}


def table(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    head = ["model", "recipe", "metric", "n", "float", "quantized", "onnxruntime's", "OpenVINO's", "file", "artifact"]
    head += ["x float", "x ort float", "x ort's int8", "x OpenVINO's int8", ""]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["model"], row["recipe"], row["metric"] or "", str(row["n"] or "")]
        scores = ("float", "quantized", "onnxruntime_quantized", "openvino_quantized")
        cells += [number(row.get(key), ".4f") for key in scores]
        cells += [number(row.get(key), ".3f") for key in ("size_ratio", "artifact_ratio")]
        rivals = ("float", "onnxruntime_float", "onnxruntime_quantized", "openvino_quantized")
        cells += [number(row.get(f"ratio_vs_{name}"), ".2f") for name in rivals]
        errors = [str(row[key]) for key in ("error", "onnxruntime_error", "openvino_error") if row.get(key)]
        lines.append([*cells, " ".join(" ".join(errors[:1]).split())[:90]])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _points(rows: Sequence[Row]) -> list[Point]:
    """The rows that have both accuracy and speed."""
    good = [row for row in rows if row["quantized"] is not None and row["ratio_vs_float"]]
    return [
        Point(
            row["recipe"],
            row["model"],
            row["ratio_vs_onnxruntime_float"],
            100 * (row["quantized"] - row["float"]),
            row["size_ratio"],
        )
        for row in good
    ]


def _kept(path: Path) -> dict[tuple[str, str], Row]:
    """The rows of an earlier run without failure, by model and recipe."""
    if not path.exists():
        return {}
    rows: list[Row] = json.loads(path.read_text())["rows"]
    return {(row["model"], row["recipe"]): row for row in rows if "error" not in row}


def _write(path: Path, rows: list[Row]) -> None:
    """The rows with machine and versions, and their plot beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"machine": machine(), "versions": versions(), "rows": rows}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    draw(_points(rows), path.with_suffix(".svg"), "speed: onnxruntime float32's time / time")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="comma-separated; default: all that have labels")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="comma-separated presets")
    parser.add_argument("--pipeline", action="append", default=[], help="a recipe given as a pipeline; repeatable")
    parser.add_argument("--vs", action="append", default=[], choices=["openvino"], help="another rival; repeatable")
    parser.add_argument("--nncf", help="a Python that has nncf and openvino: OpenVINO's quantizer")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --out has, but for failed ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure a row; 0: no speed")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which a row is given up")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--out", type=Path, help="write rows, machine and versions to this .json; a plot beside it")
    asked = parser.parse_args()
    labelled = [name for name in models.names() if models.get(name).evaluation is not None]
    chosen = [models.get(name).name for name in asked.models.split(",")] if asked.models else labelled
    kept = _kept(asked.out) if asked.resume and asked.out is not None else {}
    if not asked.nncf:
        print("OpenVINO's quantizer is left out: --nncf names a Python that has nncf and openvino.", file=sys.stderr)
    rows: list[Row] = []
    done = dict(kept)
    for name in chosen:
        for recipe in [*filter(None, asked.recipes.split(",")), *asked.pipeline]:
            rows.append(kept.get((name, recipe)) or measure(name, recipe, asked))
            done[name, recipe] = rows[-1]
            if asked.out is not None:
                _write(asked.out, list(done.values()))
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=1) if asked.json else table(rows))
    sys.exit(any("error" in row for row in rows))


if __name__ == "__main__":
    main()
