"""`graphopt bench` of a GPU's artifact: what it is compared with; and the command itself, on the emulated device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from graphopt import artifact, oracle
from graphopt.base import Context
from graphopt.cli.bench import _print_comparison
from graphopt.errors import HostError
from graphopt.measure.rivals import open_rivals, usual
from graphopt.targets.cuda import Cuda
from graphopt.testing import from_text
from graphopt.testing.cuda_emulation import build

CUDA = "CUDAExecutionProvider"
here = CUDA in onnxruntime.get_available_providers()


def _net():
    text = """<ir_version: 10, opset_import: ["": 18]>
    net (float[1, 6] x, float[6, 4] v, float[4, 5] w) => (float[1, 5] y) {
        a = MatMul(x, v)
        b = Relu(a)
        y = MatMul(b, w)
    }"""
    rng = np.random.default_rng(0)
    return from_text(text, v=rng.normal(size=(6, 4)).astype("f"), w=rng.normal(size=(4, 5)).astype("f"))


def test_a_gpus_artifact_meets_the_cuda_provider_where_it_is_installed(monkeypatch):
    for installed, expected in ([CUDA], "onnxruntime-cuda"), ([], "onnxruntime"):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*installed, "CPUExecutionProvider"])  # noqa: B023
        assert (usual("cuda"), usual("cpu")) == (expected, "onnxruntime")


@pytest.mark.skipif(here, reason="onnxruntime has its CUDA provider here")
def test_a_provider_that_is_not_there_is_told_and_not_replaced_by_the_cpu():
    with pytest.raises(HostError, match=r"CUDA provider is not there.*pip install onnxruntime-gpu"):
        open_rivals(["onnxruntime-cuda"], _net(), 1)


def test_the_rival_runs_on_the_cuda_provider_in_float32(monkeypatch):
    """A session that says it has the provider, and computes on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    asked, real = [], onnxruntime.InferenceSession

    class Session(real):
        def __init__(self, model, options, providers):
            asked.append(providers)
            super().__init__(model, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return [CUDA, "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    feeds = {"x": np.ones((1, 6), np.float32)}
    found = open_rivals(["onnxruntime-cuda"], _net(), 1)["onnxruntime-cuda"](feeds)
    assert asked == [[(CUDA, {"use_tf32": "0"}), "CPUExecutionProvider"]]
    monkeypatch.undo()
    np.testing.assert_allclose(found["y"], oracle.run(_net(), feeds)["y"], rtol=1e-6)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")
def test_the_command_on_the_emulated_device(tmp_path, capsys):
    """The path of a GPU's artifact through `graphopt bench --json`; the times say nothing."""
    net = _net()
    path = tmp_path / "net.gopt"
    program = Cuda(compiler="source").build(net, Context())
    artifact.write(path, program, target="cuda{arch=sm_80}", before=net, after=net, report={})
    script = f"""
import sys
from graphopt.testing.cuda_emulation import worker
worker.start({str(build.driver())!r})
from graphopt.cli import main
sys.argv = ["graphopt", "bench", {str(path)!r}, "--seconds", "0.2", *sys.argv[1:]]
main()
"""
    device = build.settings(program.files["kernels.cu"].decode(), "sm_80", False, None)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *options]
        environment = {**os.environ, **device}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)

    done = run("--json", "--against", "onnxruntime")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["device"] == "cuda"
    assert list(row["ratios"]) == ["onnxruntime"]
    assert row["graphopt_ms"] > 0
    _print_comparison(row)
    assert "onnxruntime ran on the CPU" in capsys.readouterr().out
    if not here:
        refused = run("--against", "onnxruntime-cuda")
        assert (refused.returncode, refused.stdout) == (HostError.exit_code, "")
        assert "CUDA provider is not there" in refused.stderr
