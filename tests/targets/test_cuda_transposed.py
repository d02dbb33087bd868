"""Products read transposed operands where they lie: attention without a kernel that only transposes."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import artifact, graph, oracle
from graphopt.base import Context
from graphopt.targets.cuda import Cuda
from graphopt.testing.cuda_emulation import emulate

needs_linux = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")

ATTENTION = """<ir_version: 10, opset_import: ["": 18]>
net (float16[B, N, 3, 24] q, float16[B, N, 3, 24] k, float16[B, N, 3, 24] v) => (float16[B, 3, N, 24] y) {
    [queries] a = Transpose <perm = [0, 2, 1, 3]> (q)
    [keys] b = Transpose <perm = [0, 2, 3, 1]> (k)
    [values] c = Transpose <perm = [0, 2, 1, 3]> (v)
    [scores] s = MatMul (a, b)
    [softmax] p = Softmax <axis = -1> (s)
    [context] y = MatMul (p, c)
}"""


@pytest.fixture(scope="module")
def attention() -> ir.Model:
    return graph.normalise(ir.from_onnx_text(ATTENTION))


@pytest.fixture(scope="module")
def program(attention):
    return Cuda(arch="sm_80", compiler="source").build(attention, Context())


def test_no_kernel_transposes_queries_keys_or_values(program):
    nodes = [set(kernel["nodes"]) for kernel in program.report["kernels"]]
    assert not any(found and found <= {"queries", "keys", "values"} for found in nodes)
    kernels = program.report["kernels"]
    (scores,) = (kernel for kernel in kernels if "scores" in kernel["nodes"])
    assert scores["schedule"] == "TensorCores"
    assert scores["asynchronous_copies"] >= 2  # rows of 24 halves of queries and of keys, along the sum
    assert "nvcuda::wmma::col_major" in program.files["kernels.cu"].decode()


@needs_linux
def test_attention_of_open_length_is_onnxruntimes(attention, program, tmp_path):
    saved = artifact.write(tmp_path / "a.gopt", program, target="cuda", before=attention, after=attention, report={})
    rng = np.random.default_rng(0)
    feeds = {name: rng.normal(size=(2, 35, 3, 24)).astype(np.float16) for name in "qkv"}
    got, expected = emulate(saved, feeds)["y"], oracle.run(attention, feeds)["y"]
    np.testing.assert_allclose(got.astype(np.float32), expected.astype(np.float32), atol=1e-2, rtol=1e-2)


def test_a_left_operand_across_the_sum_is_transposed_first():
    """Its rows lie along i: what tensor cores load are runs along k."""
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 18]>
        net (float16[64, 48] x, float16[64, 32] w) => (float16[48, 32] y) {
            [turn] t = Transpose(x) [mm] y = MatMul(t, w) }""")
    kernels = Cuda(arch="sm_80", compiler="source").build(graph.normalise(model), Context()).report["kernels"]
    assert {tuple(kernel["nodes"]): kernel["schedule"] == "TensorCores" for kernel in kernels} == {
        ("turn",): False,
        ("mm",): True,
    }


def test_float32_is_left_to_its_own_schedule():
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 18]>
        net (float[48, 64] x, float[32, 64] w) => (float[48, 32] y) {
            [turn] t = Transpose(w) [mm] y = MatMul(x, t) }""")
    kernels = Cuda(arch="sm_80", compiler="source").build(graph.normalise(model), Context()).report["kernels"]
    assert not any(kernel["schedule"] == "TensorCores" for kernel in kernels)


@needs_linux
@pytest.mark.parametrize("shapes", [((3, 1, 20, 24), (2, 40, 24)), ((20, 24), (3, 40, 24)), ((1, 20, 24), (3, 40, 24))])
def test_batches_broadcast(shapes):
    """Axes of size 1, and axes that one operand lacks."""
    left, right = shapes
    perm = list(range(len(right)))
    perm[-1], perm[-2] = perm[-2], perm[-1]
    open_shape = ",".join("abcd"[: max(map(len, shapes))])
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["": 18]>
        net (float16{list(left)} x, float16{list(right)} w) => (float16[{open_shape}] y) {{
            t = Transpose <perm = {perm}> (w)
            y = MatMul (x, t)
        }}""")
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=left).astype(np.float16), "w": rng.normal(size=right).astype(np.float16)}
    got = emulate(graph.normalise(model), feeds)["y"]
    expected = feeds["x"].astype(np.float32) @ feeds["w"].astype(np.float32).swapaxes(-1, -2)
    np.testing.assert_allclose(got.astype(np.float32), expected, atol=1e-2, rtol=1e-2)
