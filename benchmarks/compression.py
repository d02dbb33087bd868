"""Accuracy x speed x size of compressed reference models, with naive recipes as baselines in the same table.

    python benchmarks/compression.py                                    # the labelled models, all recipes
    python benchmarks/compression.py --models digits,mnist --batch 8 --json
    python benchmarks/compression.py --models crepe-full --pipeline 'fold-batch-norm,prune-channels{macs=0.2}'

`float` and `compressed` are the metric on `n` held-out labels, `agreement` the part of those samples where both models'
first outputs have their largest score in the same place. `speedup` is the median over interleaved rounds of the time of
graphopt's own float program (preset O2, llvm target) / that of the compressed model's, `speedup_vs_onnxruntime` that of
onnxruntime on the float model. `size_ratio` is that of the ONNX files, `artifact_ratio` that of the artifacts (zeros
take space in an ONNX file, little in an artifact), `macs_ratio` that of the multiply-accumulates: the speed-up
that they alone predict is its inverse. `seconds` is how long the recipe took.
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
from graphopt.pipeline import PRESETS

Row = dict[str, Any]
RECIPES = {
    "channels": "{o2},prune-channels{{{budget}}}",
    "channels-tuned": "{o2},prune-channels{{{budget}}},fine-tune{{{tuning}}}",
    "channels-tuned-int8": "{o2},prune-channels{{{budget}}},fine-tune{{{tuning}}},insert-qdq",
    "channels-weights": "{o2},prune-channels{{{budget}}},quantize-weights",
    "channels-int8": "{o2},prune-channels{{{budget}}},insert-qdq",
    "zeros": "{o2},prune-magnitude{{sparsity=0.9,scope=sensitivity}}",
    "two-of-four": "{o2},prune-magnitude{{pattern=2:4}}",
    "random-channels": "{o2},prune-channels{{{budget},criterion=random,recover=false}}",
    "smallest-channels": "{o2},prune-channels{{{budget},criterion=l2,recover=false}}",
    "random-zeros": "{o2},prune-magnitude{{sparsity=0.9,criterion=random,recover=false}}",
    "rounded": "{o2},rounded",
}
"""The last four are the textbook's: random masks, the smallest norms, none refitted, and `naive.Rounded`."""
BUDGETS = {
    "digits": "macs=0.25,samples=1000",
    "mnist": "macs=0.17,samples=512",
    "angle-classifier": "macs=0.4",
    "ocr-recogniser": "macs=0.56,samples=96,rows=4096",
    "crepe-full": "macs=0.12,parameters=0.2,samples=512",
    "crepe-tiny": "macs=0.7",
}
"""How much of a model stays; half of the multiply-accumulates where nothing is said. Found by `graphopt prune
--evaluation MODEL`, whose labelled samples are others than those reported on.
"""
FIXED = ("minilm-l3",)
"""Models whose free dimensions get their sizes before, for their shapes are computed from one another's: what can be
taken out is not known otherwise."""
TUNING = {"digits": "epochs=60,lr=0.003,patience=60", "mnist": "epochs=30,lr=0.002"}
"""Options of the fine-tuning; 20 epochs where nothing is said."""
KEYS = ("model", "recipe", "metric", "float", "compressed", "n", "speedup", "speedup_vs_onnxruntime", "size_ratio")


def pipeline_of(recipe: str, model: str) -> str:
    """The pipeline that a recipe is for a model."""
    return RECIPES[recipe].format(o2=PRESETS["O2"], budget=BUDGETS.get(model, "macs=0.5"), tuning=TUNING.get(model, ""))


def measure(name: str, recipe: str, pipeline: str, asked: argparse.Namespace) -> Row:
    """One row, measured by `one_compressed.py`."""
    command = [sys.executable, str(Path(__file__).with_name("one_compressed.py")), name, "--pipeline", pipeline]
    command += ["--threads", str(asked.threads), "--seconds", str(asked.seconds)]
    command += ["--batch", str(asked.batch)] + ["--fixed"] * (name in FIXED)
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
    head = ["model", "recipe", "metric", "n", "float", "compressed", "size", "MACs", "x float", "x onnxruntime", ""]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["model"], row["recipe"], row["metric"] or "", str(row["n"] or "")]
        cells += [number(row[key], ".4f") for key in ("float", "compressed")]
        cells += [number(row.get(key), ".3f") for key in ("size_ratio", "macs_ratio")]
        cells += [number(row[key], ".2f") for key in ("speedup", "speedup_vs_onnxruntime")]
        lines.append([*cells, " ".join(str(row.get("error") or "").split())[:90]])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _points(rows: Sequence[Row]) -> list[Point]:
    """The rows that have both accuracy and speed."""
    good = [row for row in rows if row["compressed"] is not None and row["speedup"]]
    return [
        Point(row["recipe"], row["model"], row["speedup"], 100 * (row["compressed"] - row["float"]), row["size_ratio"])
        for row in good
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="comma-separated; default: all that have labels")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="comma-separated")
    parser.add_argument("--pipeline", action="append", default=[], help="a recipe given as a pipeline; repeatable")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, help="samples in a run, where the model leaves that open")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure a row; 0: no speed")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which a row is given up")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--out", type=Path, help="write rows, machine and versions to this .json; a plot beside it")
    asked = parser.parse_args()
    labelled = [name for name in models.names() if models.get(name).evaluation is not None]
    chosen = [models.get(name).name for name in asked.models.split(",")] if asked.models else labelled
    recipes = list(filter(None, asked.recipes.split(",")))
    unknown = [recipe for recipe in recipes if recipe not in RECIPES]
    if unknown:
        parser.error(f"there is no recipe {unknown[0]!r}; the recipes are {', '.join(RECIPES)}")
    rows: list[Row] = []
    for name in chosen:
        todo = [(recipe, pipeline_of(recipe, name)) for recipe in recipes] + [(text, text) for text in asked.pipeline]
        for recipe, pipeline in todo:
            rows.append(measure(name, recipe, pipeline, asked))
            if asked.out is not None:
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                whole = {"machine": machine(), "versions": versions(), "rows": rows}
                asked.out.write_text(json.dumps(whole, indent=1) + "\n")
                draw(_points(rows), asked.out.with_suffix(".svg"), "speed: the float program's time / time")
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=1) if asked.json else table(rows))
    sys.exit(any("error" in row for row in rows))


if __name__ == "__main__":
    main()
