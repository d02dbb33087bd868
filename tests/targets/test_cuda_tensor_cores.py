"""Products of float16 run on tensor cores: the CUDA C itself, emulated on the CPU, against onnxruntime."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import artifact, graph, oracle
from graphopt.base import Context
from graphopt.targets.cuda import Cuda
from graphopt.targets.cuda.machine_code import compiler
from graphopt.testing.cuda_emulation import emulate

needs_linux = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")

NET = """<ir_version: 10, opset_import: ["": 18]>
net (float16[B, N, 70] x, float16[B, 70, 33] z) => (float16[B, N, 90] y, float16[B, N, 33] a) {
    [dense] c = MatMul(x, w)
    [bias] d = Add(c, b)
    [relu] y = Relu(d)
    [both] a = MatMul(x, z)
}"""


@pytest.fixture(scope="module")
def net() -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(70, 90)) / 4, "b": rng.normal(size=90)}
    tensors = [ir.tensor(array.astype(np.float16), name=name) for name, array in weights.items()]
    return graph.normalise(ir.from_onnx_text(NET, initializers=tensors))


@pytest.fixture(scope="module")
def program(net):
    return Cuda(arch="sm_80").build(net, Context())


def test_products_of_float16_get_the_schedule_and_the_instructions(program):
    kernels = program.report["kernels"]
    assert {kernel["schedule"] for kernel in kernels} == {"TensorCores"}
    assert {"dense", "bias", "both"} <= {node for kernel in kernels for node in kernel["nodes"]}
    found = {row["function"]: row for row in program.report["estimates"]["A100"]["kernels"]}
    assert all(row["microseconds"] > 0 for row in found.values())
    assert program.report["spilling"] == []
    source = program.files["kernels.cu"].decode()
    assert source.count("__global__") <= 2 * source.count("mma_sync(")
    if set(compiler.routes()) != {"source"}:
        assert all(kernel["shared"] < 48 << 10 and kernel["threads"] == 128 for kernel in kernels)
        limits = {row["limit"] for row in program.report["estimates"]["A100"]["kernels"]}
        assert limits <= {"memory", "few blocks", "tensor cores"}


@needs_linux
@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (2, 65)])
def test_sizes_that_are_no_multiples_of_the_tile(net, program, tmp_path, batch, rows):
    """Rows and columns past the edge are neither read nor written: the emulator checks every access."""
    saved = artifact.write(tmp_path / "net.gopt", program, target="cuda", before=net, after=net, report={})
    rng = np.random.default_rng(rows)
    feeds = {
        "x": rng.normal(size=(batch, rows, 70)).astype(np.float16),
        "z": rng.normal(size=(batch, 70, 33)).astype(np.float16),
    }
    expected = oracle.run(net, feeds)
    for name, value in emulate(saved, feeds).items():
        np.testing.assert_allclose(value.astype(np.float32), expected[name].astype(np.float32), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("rows", "blocks"), [(768, 12 * 9), (704, 22 * 18)])
def test_tiles_are_small_where_large_ones_are_too_few_for_a_gpu(rows, blocks):
    """Of 64 x 64 where there are 108 of them, else of 32 x 32."""
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["": 18]>
        net (float16[{rows}, 64] x, float16[64, 576] w) => (float16[{rows}, 576] y) {{ [mm] y = MatMul(x, w) }}""")
    (kernel,) = Cuda(arch="sm_80").build(graph.normalise(model), Context()).report["kernels"]
    assert kernel["schedule"] == "TensorCores"
    assert kernel.get("blocks", blocks) == blocks


def test_a_product_of_float32_stays_in_float32():
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 18]>
        net (float[3, 16] x, float[16, 8] w) => (float[3, 8] y) { [mm] y = MatMul(x, w) }""")
    (kernel,) = Cuda(arch="sm_80", compiler="source").build(graph.normalise(model), Context()).report["kernels"]
    assert kernel["schedule"] != "TensorCores"
