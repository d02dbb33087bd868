"""Kernel by kernel: each distinct kernel of a model in the emulator, beside the host and onnxruntime."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest

from graphopt import graph, models
from graphopt.api import optimize
from graphopt.pipeline.presets import PRESETS
from graphopt.testing import from_text
from graphopt.testing.cuda_emulation import check_kernels
from graphopt.testing.cuda_emulation.__main__ import main
from graphopt.testing.cuda_emulation.by_kernel import difference

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _net():
    text = """<ir_version: 10, opset_import: ["": 18]>
    net (float[N, 40] x, float[40, 40] w, int64[1] axes) => (float[N, 40] y, float[N, 1] m) {
        a = MatMul(x, w)
        b = MatMul(a, w)
        s = Softmax(b)
        y = Relu(s)
        m = ReduceMean<keepdims = 1>(b, axes)
    }"""
    return from_text(text, w=_normal(40, 40) / 10, axes=np.array([1], np.int64))


def test_each_function_is_checked_once_with_what_it_gets_in_the_model():
    """Two equal MatMuls are one function; the batch of 3 fills no tile."""
    found = check_kernels(_net(), {"x": _normal(3, 40, seed=1)}, sample=2)
    names = [kernel.function for kernel in found.kernels]
    assert len(names) == len(set(names)) >= 3
    assert sum("matmul" in name for name in names) == 1
    for kernel in found.kernels:
        assert not kernel.fault
        assert kernel.error < 1e-6
        assert kernel.onnxruntime_error < 1e-6
        assert kernel.nodes
    assert found.unchecked == []
    assert found.output_error < 1e-6


def test_wrong_values_and_faults_are_told_of_the_kernel_and_the_rest_goes_on():
    def edit(source: str) -> str:
        at = source.rindex("matmul_kernel(")
        return source[:at].replace("expf(", "exp2f(") + source[at:].replace("__syncthreads();", "", 1)

    found = check_kernels(_net(), {"x": _normal(3, 40, seed=1)}, sample=None, edit=edit)
    (fault,) = [kernel for kernel in found.kernels if kernel.fault]
    assert f"{fault.function}_kernel, block (0, 0, 0), thread" in fault.fault
    assert fault.error is None
    wrong = [kernel.function for kernel in found.kernels if not kernel.fault and kernel.error > 1e-3]
    assert wrong
    assert all("softmax" in name for name in wrong)
    assert any(kernel.error is not None and kernel.error < 1e-6 for kernel in found.kernels)


def test_difference_is_over_the_largest_magnitude_and_sees_what_is_no_number():
    expected = np.array([[-4.0, 0.0], [np.inf, np.nan]], np.float32)
    assert difference(expected, expected) == 0.0
    assert difference(expected + np.float32(0.5), expected) == 0.125
    for wrong in (np.nan, np.inf):
        assert difference(np.where(expected == 0, np.float32(wrong), expected), expected) == float("inf")
    assert difference(np.zeros((2, 2), np.float32), expected) == float("inf")
    assert difference(np.array([1, 3]), np.array([1, 4])) == 0.25
    assert difference(np.array([True]), np.array([False])) > 1


def test_the_command_prints_one_document(tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["cuda_emulation", *arguments])
        return main()

    relu = from_text('<ir_version: 10, opset_import: ["": 18]> g (float[N, 5] x) => (float[N, 5] y) { y = Relu(x) }')
    path = graph.save(relu, tmp_path / "relu.onnx")
    assert run(str(path), "--json", "--arch", "sm_90") == 0
    found = json.loads(capsys.readouterr().out)
    assert [kernel["error"] for kernel in found["kernels"]] == [0.0]
    assert found["wrong"] == []
    assert run(str(path), "--tolerance", "-1") == 1
    assert "1 kernels, 1 wrong" in capsys.readouterr().out
    assert run("no-such.onnx", "--json") == 3
    assert capsys.readouterr().err.startswith("graphopt: error: there is no file")


def test_kernels_of_bfloat16():
    model = optimize(_net(), "convert-bfloat16", verify=False)
    found = check_kernels(model, {"x": _normal(3, 40, seed=1)}, sample=2)
    assert "bfloat16" in {kernel.dtype for kernel in found.kernels}
    assert [kernel.fault for kernel in found.kernels if kernel.fault] == []
    assert max(kernel.error for kernel in found.kernels) < 1e-2
    assert found.output_error < 1e-2


def test_integers_are_to_be_equal_whatever_the_tolerance():
    from graphopt.testing.cuda_emulation.__main__ import _wrong
    from graphopt.testing.cuda_emulation.by_kernel import KernelCheck

    for dtype, error, wrong in (("int8", 1e-6, True), ("uint8", 0.0, False), ("float16", 1e-6, False)):
        assert _wrong(KernelCheck("f", [[1]], [], "Fallback", dtype, error), 1e-2) is wrong


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["O2", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["mobilenet-v2", "minilm-l3", "ocr-recogniser", "resnet50"])
def test_every_kernel_of_these_models_computes_what_onnxruntime_computes(name, preset):
    """Within 1e-3 in float32, 1e-2 in 16 bits, integers equal; memory and races checked on 8 blocks of each launch."""
    entry = models.get(name)
    calibration = entry.calibration() if preset == "int8" else None
    model = optimize(graph.load(entry.path()), PRESETS[preset], calibration=calibration, verify=False)
    found = check_kernels(model, entry.example(1))
    errors = [kernel.error for kernel in found.kernels if kernel.error is not None]
    near = [kernel.onnxruntime_error for kernel in found.kernels if kernel.onnxruntime_error is not None]
    whole = [kernel for kernel in found.kernels if "int" in kernel.dtype]
    print(  # figures of docs/cuda-verification.md
        f"{name} {preset}: {len(found.kernels)} kernels, {len(whole)} of integers, to host {max(errors):.1e}, to "
        f"onnxruntime {max(near):.1e} ({len(near)}), outputs {found.output_error:.1e}"
    )
    tolerance = 1e-3 if preset == "O2" else 1e-2
    assert found.unchecked == []
    assert [kernel.fault for kernel in found.kernels if kernel.fault] == []
    assert [kernel.function for kernel in whole if kernel.error] == []
    assert max(errors) < tolerance
    if preset in ("O2", "float16"):
        assert found.output_error < tolerance
