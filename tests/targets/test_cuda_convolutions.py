"""Convolutions of float16 on tensor cores, fed by asynchronous copies: emulated on the CPU, against onnxruntime."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import artifact, graph, oracle
from graphopt.base import Context
from graphopt.graph import cost
from graphopt.passes.convert_float16 import ConvertFloat16
from graphopt.targets.cuda import Cuda
from graphopt.testing import from_text
from graphopt.testing.cuda_emulation import EmulationError, emulate

needs_linux = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")

NET = """<ir_version: 10, opset_import: ["": 18]>
net (float[N,5,11,13] x, float[24,5,3,3] w0, float[24] b0, float[24,24,1,1] w1, float[24] b1, float[40,24,5,3] w2,
     float[24,1,3,3] w3, float[48,12,1,1] w4, float[24,3,2,2] w5)
    => (float[N,24,11,13] r, float[N,40,6,6] s, float[N,24,11,13] d, float[N,48,11,13] g, float[N,3,22,26] u) {
    [first] c = Conv <pads = [1,1,1,1]> (x, w0, b0)
    [relu] e = Relu (c)
    [pointwise] f = Conv (e, w1, b1)
    [residual] h = Add (f, e)
    [activation] r = Relu (h)
    [strided] s = Conv <pads = [2,1,2,0], strides = [2,2]> (r, w2)
    [depthwise] d = Conv <pads = [1,1,1,1], group = 24> (r, w3)
    [grouped] g = Conv <group = 2> (r, w4)
    [transposed] u = ConvTranspose <strides = [2,2]> (r, w5)
}"""
SHAPES = {"w0": (24, 5, 3, 3), "b0": (24,), "w1": (24, 24, 1, 1), "b1": (24,), "w2": (40, 24, 5, 3)}
SHAPES |= {"w3": (24, 1, 3, 3), "w4": (48, 12, 1, 1), "w5": (24, 3, 2, 2)}


@pytest.fixture(scope="module")
def single() -> ir.Model:
    rng = np.random.default_rng(1)
    return from_text(NET, **{name: (rng.normal(size=s) / 4).astype(np.float32) for name, s in SHAPES.items()})


@pytest.fixture(scope="module")
def half(single) -> ir.Model:
    model = single.clone()
    ConvertFloat16().apply(model, Context())
    return model


@pytest.fixture(scope="module")
def program(half):
    return Cuda(arch="sm_80", compiler="source").build(half, Context())


def feeds(batch: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(batch).normal(size=(batch, 5, 11, 13)).astype(np.float32)}


def written(half, program, folder) -> str:
    return artifact.write(folder / "net.gopt", program, target="cuda", before=half, after=half, report={})


def check(got, expected):
    for name, value in expected.items():
        assert np.abs(got[name] - value).max() <= 1e-2 * np.abs(value).max(), name


def test_ordinary_convolutions_get_tensor_cores_with_what_follows_fused(program):
    found = {tuple(kernel["nodes"]): kernel["schedule"] for kernel in program.report["kernels"] if kernel["nodes"]}
    assert found["pointwise", "residual"] == found["strided",] == "TensorCores"
    assert not {found["depthwise",], found["grouped",]} & {"TensorCores", "Matmul", "GeneralReduction"}
    source = program.files["kernels.cu"].decode()
    assert source.count("mma_sync(") >= 3
    assert "ptx_cp_async" in source


def test_the_arithmetic_of_every_convolution_is_accounted_for(single, program):
    """Those with no bias too, whose last operator is a cast."""
    assert program.report["macs"] == sum(cost.macs(node) for node in single.graph)


@needs_linux
@pytest.mark.parametrize("batch", [1, 3])
def test_the_emulated_device_agrees_with_onnxruntime(single, half, program, tmp_path, batch):
    """Batches of 11 x 13 pixels, 5, 24 and 40 channels: every tile has an edge, and padding, within it."""
    check(emulate(written(half, program, tmp_path), feeds(batch)), oracle.run(single, feeds(batch)))


@needs_linux
def test_a_fixed_batch_shares_tiles_and_an_old_gpu_waits_for_its_copies(single, half):
    fixed = half.clone()
    graph.bind_dims(fixed, {"N": 2})
    program = Cuda(arch="sm_75", compiler="source").build(fixed, Context())
    assert "cp_async" not in program.files["kernels.cu"].decode()
    check(emulate(fixed, feeds(2), arch="sm_75"), oracle.run(single, feeds(2)))


@needs_linux
@pytest.mark.parametrize(
    ("whole", "broken"),
    [("cp.async.wait_group 2;", "cp.async.wait_group 3;"), ("\n    __syncthreads();\n    for", "\n    for")],
    ids=["a wait", "the barriers"],
)
def test_a_pipeline_without_its_waits_or_barriers_is_caught(half, program, tmp_path, whole, broken):
    def edit(source: str) -> str:
        assert whole in source
        return source.replace(whole, broken)

    with pytest.raises(EmulationError, match=r"byte \d+ of shared"):
        emulate(written(half, program, tmp_path), feeds(1), edit=edit)


@needs_linux
def test_a_transposed_convolution_of_open_image_size_is_summed_thread_by_thread():
    """Of a size that Resize computes: GeneralReduction gave each thread all sums, which TVM can't write in CUDA C."""
    text = """<ir_version: 10, opset_import: ["": 18]>
    g (float[N,3,H,W] x, float[24,3,3,3] v, float[4] scales, float[24,1,2,2] w, float[1] b) => (float[N,1,P,Q] y) {
        c = Conv <pads = [1,1,1,1], strides = [2,2]> (x, v)
        r = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (c, , scales)
        t = ConvTranspose <strides = [2,2]> (r, w, b)
        y = Sigmoid (t)
    }"""
    rng = np.random.default_rng(0)
    shapes = {"v": (24, 3, 3, 3), "w": (24, 1, 2, 2), "b": (1,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    model = graph.normalise(from_text(text, **weights))
    x = {"x": rng.normal(size=(2, 3, 5, 9)).astype(np.float32)}
    np.testing.assert_allclose(emulate(model, x)["y"], oracle.run(model, x)["y"], atol=1e-5)
