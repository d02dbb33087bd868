"""Large arrays made while compiling lie in files, and a compiler of a large model holds a fraction of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt import spill
from graphopt.packed import to_bytes


def test_a_large_array_is_the_same_from_a_file_and_its_memory_is_given_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spill, "LARGE", 1 << 12)
    rng = np.random.default_rng(0)
    for array in (rng.normal(size=(50, 100)), rng.normal(size=(100, 64)).T, rng.integers(0, 9, 5000)):
        kept = spill.spilled(array)
        assert isinstance(kept, spill.Spilled)
        data = to_bytes(kept)
        assert bytes(data) == np.ascontiguousarray(array).tobytes()
        spill.let_go(data)
        np.testing.assert_array_equal(kept, array)
        with pytest.raises(ValueError, match="read-only"):
            kept[0] = 0
    small = np.ones(3)
    assert spill.spilled(small) is small
    spill.let_go(to_bytes(small))
    spill.let_go(b"bytes")
    assert small.tolist() == [1, 1, 1]


def test_compiling_holds_a_fraction_of_a_large_models_weights(tmp_path: Path):
    """Eight matrices of 36 MB in a file beside the model; what is there without them is taken off."""
    code = """
import sys, json, resource
import numpy as np
import onnx
from onnx import TensorProto, helper
import graphopt
from graphopt.graph import load

def write(folder, width, count):
    nodes, weights = [], []
    with open(folder + "/data.bin", "wb") as file:
        for k in range(count):
            np.random.default_rng(k).standard_normal((width, width), np.float32).tofile(file)
            tensor = TensorProto(name=f"w{k}", data_type=1, dims=[width, width], data_location=TensorProto.EXTERNAL)
            size = 4 * width * width
            for key, value in (("location", "data.bin"), ("offset", k * size), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
            nodes += [helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"m{k}"]),
                      helper.make_node("Relu", [f"m{k}"], [f"x{k + 1}"])]
    ends = [helper.make_tensor_value_info(name, 1, ["N", width]) for name in ("x0", f"x{count}")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder + "/m.onnx")

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

from graphopt.cli.app import app
def compile(folder):
    app(["compile", folder + "/m.onnx", "-O0", "--no-verify", "--no-fallback", "-o", folder + "/m.gopt"],
        standalone_mode=False)

small, large = sys.argv[1:]
write(small, 64, 8)
write(large, 3000, 8)
compile(small)
before = peak()
compile(large)
print(json.dumps(peak() - before))
"""
    folders = [tmp_path / name for name in ("small", "large")]
    for folder in folders:
        folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    grown, whole = json.loads(done.stdout.splitlines()[-1]), 8 * 36_000_000
    assert (folders[1] / "m.gopt").stat().st_size > 0.9 * whole
    assert grown < 0.7 * whole, grown / whole
