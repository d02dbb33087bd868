"""Source-level exports: what is written, that it is labelled, and that nobody takes it for something that runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from graphopt import artifact, graph
from graphopt.cli.app import app
from graphopt.errors import ArtifactError, HostError
from graphopt.targets.export import Metal, Opencl, Rocm, Webgpu
from graphopt.testing import from_text

NET = """<ir_version: 10, opset_import: ["": 18]>
net (float[2, 8] x, float[8, 4] w) => (float[2, 4] y) { m = MatMul(x, w)
    y = Relu(m) }"""

WRITTEN = {
    "opencl": (Opencl, "kernels.cl", "__kernel void"),
    "metal": (Metal, "kernels.metal", "kernel void"),
    "webgpu": (Webgpu, "kernels.wgsl", "@compute"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    graph.save(from_text(NET, w=np.ones((8, 4), np.float32)), path)
    return path


@pytest.mark.parametrize("name", WRITTEN)
def test_an_export_holds_its_language_and_is_refused_to_run(name, saved, tmp_path):
    _, file, word = WRITTEN[name]
    out = tmp_path / "net.gopt"
    done = CliRunner().invoke(app, ["compile", str(saved), "--target", name, "-O0", "--no-fallback", "-o", str(out)])
    assert done.exit_code == 0, done.output
    made = artifact.read(out)
    assert made.files == [file]
    source = made.read_file(file).decode()
    assert word in source
    assert "matmul_relu_kernel" in source
    assert made.report["target"]["label"].startswith("source-level export")
    with pytest.raises(ArtifactError, match=f"source-level export for {name}, which graphopt does not run: .*{file}"):
        artifact.load(out)


def test_an_export_never_falls_back_to_onnxruntime(tmp_path):
    """It could not be run beside: what does not lower is an error that says so, whatever --fallback is."""
    text = """<ir_version: 10, opset_import: ["": 18]>
    g (float[N] x) => (int64[1, M] y) { y = NonZero(x) }"""
    path = graph.save(from_text(text), tmp_path / "nonzero.onnx")
    done = CliRunner().invoke(app, ["compile", str(path), "--target", "opencl", "-o", str(tmp_path / "o.gopt")])
    assert done.exit_code != 0
    assert "The opencl export has no fallback to onnxruntime: all nodes must lower." in str(done.exception)
    assert not (tmp_path / "o.gopt").exists()


def test_targets_says_what_each_is():
    told = {d["name"]: d["status"] for d in json.loads(CliRunner().invoke(app, ["targets", "--json"]).stdout)}
    assert {"cuda", "llvm", "npu", "rocm", *WRITTEN} == set(told)
    for name in WRITTEN:
        assert told[name]["ready"]
        assert not told[name]["runs_here"]
        assert told[name]["what"].startswith("source-level export")


def test_rocm_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(
        Rocm, "missing", classmethod(lambda cls: "TVM links ROCm's device libraries, and there are none")
    )
    assert not Rocm.status()["ready"]
    with pytest.raises(HostError, match="the rocm export is not possible on this machine: TVM links"):
        Rocm(mcpu="gfx942").build(from_text(NET, w=np.ones((8, 4), np.float32)), None)
