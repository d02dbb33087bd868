"""What the passes cost: ``graphopt opt -O3 --no-verify`` beside onnxslim, onnxsim and onnxruntime's own optimiser.

    python benchmarks/passes.py --nodes 1000,10000,100000 --models resnet50 --json
    python benchmarks/passes.py --rivals /path/to/python      # an environment with onnxslim, onnxsim, onnxruntime
    python benchmarks/passes.py --big 2.2                     # a model of 2.2 GB: its weights become int8

Each tool reads the file, optimises and writes it, in a process of its own on one thread. Reported are CPU seconds (user
and system, of the whole process, its start included) and its peak resident memory. `--nodes`: residual graphs of Conv,
BatchNormalization, Relu and Add.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from describe import machine, versions
from onnx import helper, numpy_helper

RIVALS = {
    "onnxslim": "import sys, onnxslim; onnxslim.slim(*sys.argv[1:])",
    "onnxsim": "import sys, onnx, onnxsim; onnx.save(onnxsim.simplify(sys.argv[1])[0], sys.argv[2])",
    "onnxruntime": (
        "import sys, onnxruntime as o; s = o.SessionOptions(); s.optimized_model_filepath = sys.argv[2]; "
        "s.graph_optimization_level = o.GraphOptimizationLevel.ORT_ENABLE_EXTENDED; s.intra_op_num_threads = 1; "
        "o.InferenceSession(sys.argv[1], s, providers=['CPUExecutionProvider'])"
    ),
}
LIMIT = 900
"""Seconds after which a tool is stopped."""

Row = dict[str, Any]


def residual(nodes: int, path: Path, channels: int = 4) -> None:
    """Write a graph of `nodes` nodes: Conv, BatchNormalization, Relu, and Add of what went in."""
    random = np.random.default_rng(0)
    made: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    value = "x"
    for k in range(nodes // 4):
        filters = 0.3 * random.standard_normal((channels, channels, 1, 1))
        statistics = {name: 0.1 * random.standard_normal(channels) for name in ("bias", "mean")}
        statistics |= {"scale": 1 + 0.1 * random.standard_normal(channels), "var": np.ones(channels)}
        for name, array in {"filters": filters, **statistics}.items():
            weights.append(numpy_helper.from_array(array.astype(np.float32), f"{name}{k}"))
        normal = [f"conv{k}", *(f"{name}{k}" for name in ("scale", "bias", "mean", "var"))]
        made += [
            helper.make_node("Conv", [value, f"filters{k}"], [f"conv{k}"], f"Conv{k}"),
            helper.make_node("BatchNormalization", normal, [f"norm{k}"], f"BatchNormalization{k}"),
            helper.make_node("Relu", [f"norm{k}"], [f"relu{k}"], f"Relu{k}"),
            helper.make_node("Add", [f"relu{k}", value], [f"sum{k}"], f"Add{k}"),
        ]
        value = f"sum{k}"
    ends = [helper.make_tensor_value_info(name, 1, ["N", channels, 4, 4]) for name in ("x", value)]
    graph = helper.make_graph(made, "residual", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def big(gigabytes: float, path: Path, width: int = 4096) -> None:
    """Write a chain of MatMul and Relu whose weights, in a file beside the model, take `gigabytes`."""
    layers = round(gigabytes * 1e9 / (4 * width * width))
    block = (0.02 * np.random.default_rng(0).standard_normal((width, width))).astype(np.float32)
    weights: list[onnx.TensorProto] = []
    made: list[onnx.NodeProto] = []
    with path.with_suffix(".data").open("wb") as data:
        for k in range(layers):
            where = {"location": f"{path.stem}.data", "offset": data.tell(), "length": block.nbytes}
            data.write(np.roll(block, k, 0).tobytes())
            tensor = onnx.TensorProto(name=f"weight{k}", data_type=onnx.TensorProto.FLOAT, dims=block.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, entry in where.items():
                tensor.external_data.add(key=key, value=str(entry))
            weights.append(tensor)
            made.append(helper.make_node("MatMul", [f"relu{k - 1}" if k else "x", f"weight{k}"], [f"product{k}"]))
            made.append(helper.make_node("Relu", [f"product{k}"], [f"relu{k}"]))
    ends = [helper.make_tensor_value_info(name, 1, ["N", width]) for name in ("x", f"relu{layers - 1}")]
    graph = helper.make_graph(made, "big", ends[:1], ends[1:], weights)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    )


def timed(model: str, tool: str, command: Sequence[str]) -> Row:
    """Run `command` and say what it took; the row has `error` when it failed or was stopped."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        while True:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.perf_counter() - start > LIMIT:
                process.kill()
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        last = said.read().decode(errors="replace").strip().splitlines()[-1:] if process.returncode else []
    row: Row = {"model": model, "tool": tool, "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024}
    if process.returncode:
        row["error"] = f"stopped after {LIMIT} s" if process.returncode == -9 else " ".join(last)
    return row


def rows(model: str, path: Path, rivals: str, pipeline: Sequence[str] = ("-O3",)) -> list[Row]:
    """What each tool took to optimise the model at `path`."""
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        out = str(Path(folder) / "out.onnx")
        graphopt = [sys.executable, "-m", "graphopt", "opt", str(path), *pipeline, "--no-verify", "-o", out]
        found = [timed(model, "graphopt", graphopt)]
        for tool, code in RIVALS.items() if rivals else ():
            found.append(timed(model, tool, [rivals, "-c", code, str(path), out]))
    return found


def table(found: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| model | tool | CPU seconds | peak MB |", "|---|---|---:|---:|"]
    for row in found:
        cpu = f"{row['cpu_s']:.1f}" if "error" not in row else f"failed: {row['error'][:60]}"
        lines.append(f"| {row['model']} | {row['tool']} | {cpu} | {row['peak_mb']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="1000,10000", help="sizes of residual graphs, comma-separated; '' for none")
    parser.add_argument("--models", default="resnet50", help="names of `graphopt models`, comma-separated; '' for none")
    parser.add_argument("--big", type=float, help="also quantize the weights of a model of this many GB")
    parser.add_argument("--rivals", default="", help="a python that has onnxslim, onnxsim and onnxruntime")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args()
    from graphopt import models

    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        for size in filter(None, asked.nodes.split(",")):
            residual(int(size), Path(folder) / "residual.onnx")
            found += rows(f"residual, {size} nodes", Path(folder) / "residual.onnx", asked.rivals)
        for name in filter(None, asked.models.split(",")):
            found += rows(name, models.get(name).path(), asked.rivals)
        if asked.big:
            big(asked.big, Path(folder) / "big.onnx")
            found += rows(f"{asked.big} GB", Path(folder) / "big.onnx", "", ("-p", "fold-batch-norm,quantize-weights"))
    document = {"machine": machine(), "versions": versions(), "rows": found}
    print(json.dumps(document, indent=1) if asked.json else table(found))


if __name__ == "__main__":
    main()
