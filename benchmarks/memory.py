"""Peak memory of the reference models at run time, through graphopt's artifact beside onnxruntime.

    python benchmarks/memory.py --models resnet18,minilm-l3 --json

Each runner loads the model and runs it three times in a process of its own, on one thread and one sample. What counts
is the process's peak resident memory less what it had resident after importing numpy: runtime libraries, weights
(mapped files as far as they were touched) and activations.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

RUNNERS = ("graphopt", "onnxruntime")
RUNS = 3


def measure(name: str) -> dict[str, Any]:
    """The row of a model: megabytes of each runner, and of its weights."""
    from sizes import free_sizes

    from graphopt import api, graph, models
    from graphopt.data.files import write_npz
    from graphopt.pipeline import preset

    reference = models.get(name)
    feeds = reference.example(1)
    before = api.open_model(reference.path())
    graph.bind_dims(before, free_sizes(before, feeds))
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        here = Path(folder)
        result = api.run_pipeline(before, preset("O2"), verify=False)
        api.compile_result(before, result, "llvm{threads=1}", threads=1).save(here / "graphopt")
        graph.save(before, here / "onnxruntime")
        write_npz(here / "feeds.npz", feeds)
        size = sum(tensor.nbytes for v in before.graph.initializers.values() if (tensor := v.const_value) is not None)
        row = {runner: _peak(runner, here) for runner in RUNNERS}
    return {
        "model": name,
        "weights_mb": size / 1e6,
        **{f"{runner}_mb": megabytes for runner, megabytes in row.items()},
        "ratio": row["onnxruntime"] / row["graphopt"],
    }


def _peak(runner: str, folder: Path) -> float:
    environment = os.environ | {"TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", runner, str(folder)]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def child(runner: str, folder: Path) -> float:
    """Megabytes at the peak, less those at the start."""
    feeds = dict(np.load(folder / "feeds.npz"))
    start = _status("VmRSS")
    if runner == "graphopt":
        import graphopt

        program = graphopt.load(folder / "graphopt", threads=1)
        for _ in range(RUNS):
            program.run(feeds)
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / "onnxruntime", options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, feeds)
    return _status("VmHWM") - start


def _status(field: str) -> float:
    """A field of ``/proc/self/status`` in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="comma-separated; default: all of `graphopt models`")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(child(asked.child[0], Path(asked.child[1])))
        return
    from graphopt import models

    rows: list[dict[str, Any]] = []
    for name in asked.models.split(",") if asked.models else models.names():
        rows.append(measure(name))
        print(_text(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=1) if asked.json else "\n".join([HEAD, *map(_text, rows)]))


HEAD = "| model | weights MB | graphopt MB | onnxruntime MB | onnxruntime / graphopt |\n|---|---:|---:|---:|---:|"


def _text(row: dict[str, Any]) -> str:
    cells = (f"{row[key]:.1f}" for key in ("weights_mb", "graphopt_mb", "onnxruntime_mb"))
    return f"| {row['model']} | {' | '.join(cells)} | {row['ratio']:.2f} |"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
