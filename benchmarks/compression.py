"""Accuracy x speed x size of compressed reference models, with naive recipes as baselines in the same table.

    python benchmarks/compression.py                              # the models of `TABLE`, each by its recipes
    python benchmarks/compression.py --models digits,mnist --batch 8 --json
    python benchmarks/compression.py --keep made --out rows.json  # again with the same folder: speeds only
    python benchmarks/compression.py --keep made --out benchmarks/results/compression.json --docs docs/pruning.md
    python benchmarks/compression.py --models mnist --recipes '' --pipeline 'fold-batch-norm,prune-channels{macs=0.2}'

`float` and `compressed` are the metric on `n` held-out labels, `agreement` the part of those samples where both models'
first outputs have their largest score in the same place. `speedup` is the median over interleaved rounds of the time of
graphopt's own float program (preset O2, llvm target) / that of the compressed model's, `speedup_vs_onnxruntime` that of
onnxruntime on the float model. `size_ratio` is that of the ONNX files, `artifact_ratio` that of the artifacts (zeros
take space in an ONNX file, little in an artifact), `macs_ratio` that of the multiply-accumulates: the speed-up
that they alone predict is its inverse. `seconds` is how long the recipe took. With `--batch 1,8`, `speedup_batch_8` is
the speed-up for eight samples.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
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
    "channels-tuned-int8": "{o2},prune-channels{{{budget}}},fine-tune{{{tuning}}},{int8}",
    "channels-weights": "{o2},prune-channels{{{budget}}},quantize-weights{weights}",
    "channels-int8": "{o2},prune-channels{{{budget}}},{int8}",
    "int8": "{o2},{int8}",
    "int8-fitted": "{o2},insert-qdq{{{mixed}}},gptq{{samples=66,rows=2048}},correct-bias{{samples=66}}",
    "weights": "{o2},quantize-weights",
    "zeros": "{o2},prune-magnitude{{sparsity=0.9,scope=sensitivity{zeros}}}",
    "two-of-four": "{o2},prune-magnitude{{pattern=2:4}}",
    "random-channels": "{o2},prune-channels{{{budget},criterion=random,recover=false}}",
    "smallest-channels": "{o2},prune-channels{{{budget},criterion=l2,recover=false}}",
    "random-zeros": "{o2},prune-magnitude{{sparsity=0.9,criterion=random,recover=false}}",
    "rounded": "{o2},rounded",
    "onnxsim": "onnxsim:0.5",
}
"""The textbook's: random masks and the smallest norms, not refitted, and `naive.Rounded`. Then another tool."""
STANDARD = ("channels", "random-channels", "rounded", "onnxsim")
TABLE = {
    "digits": ("channels-tuned", "channels-tuned-int8", "weights", "smallest-channels", *STANDARD[1:]),
    "mnist": (
        "channels-tuned",
        "channels-tuned-int8",
        "weights",
        "zeros",
        "smallest-channels",
        *STANDARD[1:],
        "random-zeros",
    ),
    "angle-classifier": STANDARD,
    "crepe-full": ("channels", "channels-int8", *STANDARD[1:], "zeros", "random-zeros"),
    "ocr-recogniser": ("channels-weights", *STANDARD[1:]),
    "minilm-l3": ("channels-int8", *STANDARD[1:]),
    "efficientnet-lite0": ("int8-fitted", "channels", *STANDARD[1:]),
    "magika": STANDARD,
}
"""The models and recipes measured where none are named; of other models those of `STANDARD`."""
BUDGETS = {
    "digits": "macs=0.125,samples=512",
    "mnist": "macs=0.173,samples=512",
    "angle-classifier": "macs=0.416",
    "ocr-recogniser": "macs=0.56,samples=96,rows=4096",
    "crepe-full": "macs=0.12,parameters=0.2,samples=512",
    "crepe-tiny": "macs=0.7",
    "minilm-l3": "macs=0.8,samples=360,rows=4096",
    "efficientnet-lite0": "macs=0.95,samples=66,rows=4096",
    "magika": "macs=0.5,samples=128",
}
"""How much of a model stays; half of the multiply-accumulates where nothing is said. Found on other labelled samples
than those reported on (`ReferenceModel.selection`; `graphopt prune --evaluation MODEL`), with one exception: the
recogniser's was set with scores on the reported ones in view.
"""
FIXED = ("minilm-l3",)
"""Models whose free dimensions get their sizes before, for their shapes are computed from one another's: what can be
taken out is not known otherwise."""
TUNING = {"digits": "epochs=60,lr=0.002", "mnist": "epochs=60,lr=0.002"}
"""Options of the fine-tuning; 20 epochs where nothing is said."""
BATCHES = {"digits": [1, 8], "mnist": [1, 8]}
"""The samples in a run, where `--batch` doesn't say; else one. A call is a good part of these models' time."""
ZEROS = {"crepe-full": ",criterion=activation,steps=3,samples=512"}
"""Further options of `zeros`: patches of 65,536 entries are too many to invert their moments."""
WEIGHTS = {"ocr-recogniser": "{include=[MatMul]}"}
"""Which weights `channels-weights` stores in 8 bits: the recogniser's 6,625 characters are a third of its file."""
MIXED = {"efficientnet-lite0": "observer=minmax,exclude=[Add,_conv_stem,_blocks.0.*,_blocks.1.*,_blocks.2.*]"}
"""Options of the quantizer of `int8-fitted`: what stays float where 8 bits are too few."""
KEYS = ("model", "recipe", "metric", "float", "compressed", "n", "speedup", "speedup_vs_onnxruntime", "size_ratio")


def pipeline_of(recipe: str, model: str) -> str:
    """The pipeline that a recipe is for a model."""
    return RECIPES[recipe].format(
        o2=PRESETS["O2"],
        int8=PRESETS["int8"].removeprefix(PRESETS["O2"]).lstrip(","),
        budget=BUDGETS.get(model, "macs=0.5"),
        tuning=TUNING.get(model, ""),
        zeros=ZEROS.get(model, ""),
        weights=WEIGHTS.get(model, ""),
        mixed=MIXED.get(model, ""),
    )


def measure(name: str, pipelines: Sequence[str], asked: argparse.Namespace) -> Iterator[Row]:
    """A row for each pipeline, as `one_compressed.py` gives them; where its process dies, another goes on behind."""
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "TVM_NUM_THREADS": str(asked.threads),
        "OMP_NUM_THREADS": str(asked.threads),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    left = list(pipelines)
    while left:
        command = [sys.executable, str(Path(__file__).with_name("one_compressed.py")), name]
        command += [word for pipeline in left for word in ("--pipeline", pipeline)]
        command += ["--threads", str(asked.threads), "--seconds", str(asked.seconds)]
        batches = asked.batch or BATCHES.get(name, [1])
        command += [word for batch in batches for word in ("--batch", str(batch))] + ["--fixed"] * (name in FIXED)
        command += ["--keep", str(asked.keep)] * (asked.keep is not None)
        command += ["--onnxsim", asked.onnxsim] * (asked.onnxsim is not None)
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            assert process.stdout is not None
            while left:
                timer = threading.Timer(asked.timeout, process.kill)
                timer.start()
                line = process.stdout.readline()
                late = not timer.is_alive()
                timer.cancel()
                left.pop(0)
                if line:
                    yield json.loads(line)
                    continue
                code = process.wait()
                errors.seek(0)
                reason = errors.read().strip().splitlines()[-1:] or [f"the process ended with {code}"]
                yield {"error": f"not done after {asked.timeout:g} s" if late else reason[0]}
                break


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


MARKS = "<!-- rows of compression.json -->", "<!-- end of rows -->"


def documented(rows: Sequence[Row]) -> str:
    """The table of the documentation: what `table` has, in words, without rows that failed."""
    head = ["model (metric, float)", "behind `-O2`", "metric", "size", "artifact", "MACs", "speed-up", "batch 8"]
    head.append("x onnxruntime")
    lines, last = [head, ["---"] * len(head)], ""
    for row in rows:
        if row.get("compressed") is None:
            continue
        model = f"{row['model']} ({row['metric'].replace('_', ' ')}, {row['float']:.3f}, n={row['n']})"
        cells = ["" if model == last else model, f"`{row['pipeline'].removeprefix(PRESETS['O2'] + ',')}`"]
        cells.append(f"{row['compressed']:.3f}")
        cells += [number(row.get(key), ".3f") for key in ("size_ratio", "artifact_ratio")]
        cells += [number(row.get(key), ".2f") for key in ("macs_ratio", "speedup", "speedup_batch_8")]
        lines.append([*cells, number(row.get("speedup_vs_onnxruntime"), ".1f")])
        last = model
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def put_into(page: Path, rows: Sequence[Row]) -> None:
    """Replace what stands between `MARKS` by the table."""
    before, rest = page.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    page.write_text(f"{before}{MARKS[0]}\n{documented(rows)}\n{MARKS[1]}{after}")


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
    parser.add_argument("--models", help="comma-separated; default: those of `TABLE`")
    parser.add_argument("--recipes", help="comma-separated; default: those of the model in `TABLE`")
    parser.add_argument("--pipeline", action="append", default=[], help="a recipe given as a pipeline; repeatable")
    parser.add_argument("--threads", type=int, default=1)
    sizes = "samples in a run, where the model leaves that open; several with commas. Default: 1, of small models 1,8"
    parser.add_argument("--batch", type=lambda text: [int(size) for size in text.split(",")], help=sizes)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure a row; 0: no speed")
    parser.add_argument("--keep", type=Path, help="a folder for compressed models: what is there is only timed again")
    parser.add_argument("--onnxsim", help="a Python that has onnxsim: half of the channels taken out by it")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which a row is given up")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--out", type=Path, help="write rows, machine and versions to this .json; a plot beside it")
    parser.add_argument("--docs", type=Path, help="a page to put the table into, between its marks")
    asked = parser.parse_args()
    chosen = [models.get(name).name for name in asked.models.split(",")] if asked.models else list(TABLE)
    recipes = list(filter(None, (asked.recipes or "").split(",")))
    unknown = [recipe for recipe in recipes if recipe not in RECIPES]
    if unknown:
        parser.error(f"there is no recipe {unknown[0]!r}; the recipes are {', '.join(RECIPES)}")
    rows: list[Row] = []
    for name in chosen:
        mine = recipes if asked.recipes is not None else TABLE.get(name, STANDARD)
        todo = [(recipe, pipeline_of(recipe, name)) for recipe in mine if recipe != "onnxsim" or asked.onnxsim]
        todo += [(text, text) for text in asked.pipeline]
        for (recipe, _), found in zip(todo, measure(name, [pipeline for _, pipeline in todo], asked), strict=True):
            rows.append(dict.fromkeys(KEYS) | {"model": name, "recipe": recipe} | found)
            if asked.out is not None:
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                whole = {"machine": machine(), "versions": versions(), "rows": rows}
                asked.out.write_text(json.dumps(whole, indent=1) + "\n")
                draw(_points(rows), asked.out.with_suffix(".svg"), "speed: the float program's time / time")
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    if asked.docs is not None:
        put_into(asked.docs, rows)
    print(json.dumps(rows, indent=1) if asked.json else table(rows))
    sys.exit(any("error" in row for row in rows))


if __name__ == "__main__":
    main()
