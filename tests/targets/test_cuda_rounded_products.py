"""Products of operands rounded to bfloat16 on the cuda target: read as bfloat16, summed in float32, stored once."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import artifact, oracle
from graphopt.base import Context
from graphopt.graph import cost
from graphopt.passes.convert_bfloat16 import ConvertBfloat16
from graphopt.targets.cuda import Cuda
from graphopt.targets.cuda.lowering.lower import lower_for_gpu
from graphopt.testing import from_text
from graphopt.testing.cuda_emulation import check_kernels, emulate

needs_linux = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")

NET = """<ir_version: 10, opset_import: ["": 18]>
net (float[N,8,11,13] x, float[24,8,3,3] w0, float[24] b0, float[24,24,1,1] w1, float[24] b1, float[16,24] g,
     float[16] gb, float[24,1,3,3] w2, float[24,3,2,2] w3, float[143,1] v)
    => (float[N,16] z, float[N,24,24] s, float[N,24,11,13] d, float[N,3,22,26] u, float[N,24,1] o) {
    [first] c = Conv <pads = [1,1,1,1]> (x, w0, b0)
    [relu] e = Relu (c)
    [pointwise] f = Conv (e, w1, b1)
    [residual] h = Add (f, e)
    [activation] r = Relu (h)
    [pool] p = GlobalAveragePool (r)
    q = Flatten (p)
    [gemm] z = Gemm <transB = 1> (q, g, gb)
    shape = Constant <value_ints = [0, 24, 143]> ()
    t = Reshape (r, shape)
    t1 = Transpose <perm = [0, 2, 1]> (t)
    [scores] s = MatMul (t, t1)
    [depthwise] d = Conv <pads = [1,1,1,1], group = 24> (r, w2)
    [transposed] u = ConvTranspose <strides = [2,2]> (r, w3)
    [one_column] o = MatMul (t, v)
}"""
SHAPES = {"w0": (24, 8, 3, 3), "b0": (24,), "w1": (24, 24, 1, 1), "b1": (24,), "g": (16, 24), "gb": (16,)}
SHAPES |= {"w2": (24, 1, 3, 3), "w3": (24, 3, 2, 2), "v": (143, 1)}


@pytest.fixture(scope="module")
def single() -> ir.Model:
    rng = np.random.default_rng(1)
    return from_text(NET, **{name: (rng.normal(size=s) / 4).astype(np.float32) for name, s in SHAPES.items()})


@pytest.fixture(scope="module")
def rounded(single) -> ir.Model:
    model = single.clone()
    ConvertBfloat16().apply(model, Context())
    return model


@pytest.fixture(scope="module")
def program(rounded):
    return Cuda(arch="sm_80", compiler="source").build(rounded, Context())


def feeds(batch: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(batch).normal(size=(batch, 8, 11, 13)).astype(np.float32)}


def check(got, expected):
    """The same rounded operands: only the order of the sums differs, and what a last digit moves when it is rounded."""
    for name, value in expected.items():
        assert np.abs(got[name] - value).max() <= 1e-3 * np.abs(value).max(), name


def test_operands_are_stored_in_16_bits(rounded):
    """Weights and what products read; biases and results are float32."""
    lowered, _ = lower_for_gpu(rounded)
    kinds = {name.split("_")[0]: array.dtype.name for name, array in lowered.weights.items()}
    assert {name for name, kind in kinds.items() if kind == "bfloat16"} == {"w0", "w1", "w2", "w3", "g", "v"}
    bindings = [b for block in lowered.module["main"].body.blocks for b in block.bindings]
    calls = [b.value for b in bindings if getattr(getattr(b.value, "op", None), "name", "")[:9] == "relax.nn."]
    products = [call for call in calls if "conv" in call.op.name]
    assert {tuple(str(a.ty.dtype) for a in call.args) for call in products} == {("bfloat16", "bfloat16")}
    assert {str(call.ty.dtype) for call in products} == {"float32"}


def test_they_run_on_tensor_cores_and_the_cast_is_in_the_epilogue(program):
    found = {tuple(kernel["nodes"]): kernel for kernel in program.report["kernels"] if kernel["nodes"]}
    assert found["first", "relu"]["schedule"] == found["scores",]["schedule"] == "TensorCores"
    assert found["first", "relu"]["name"].startswith("fused_conv2d_add_relu_cast")
    source = program.files["kernels.cu"].decode()
    assert "nvcuda::wmma::matrix_a, 16, 16, 16, nv_bfloat16" in source
    assert "ptx_cp_async" in source


def test_the_arithmetic_of_every_product_is_accounted_for(single, program):
    assert program.report["macs"] == sum(cost.macs(node) for node in single.graph)


@needs_linux
@pytest.mark.parametrize("batch", [1, 3])
def test_the_emulated_device_agrees_with_onnxruntime(rounded, program, tmp_path, batch):
    path = tmp_path / "net.gopt"
    artifact.write(path, program, target="cuda", before=rounded, after=rounded, report={})
    check(emulate(path, feeds(batch)), oracle.run(rounded, feeds(batch)))


@needs_linux
def test_a_gpu_whose_tensor_cores_lack_bfloat16_sums_in_float32(rounded):
    program = Cuda(arch="sm_75", compiler="source").build(rounded, Context())
    assert "wmma" not in program.files["kernels.cu"].decode().split('extern "C"', 1)[1]
    check(emulate(rounded, feeds(2), arch="sm_75"), oracle.run(rounded, feeds(2)))


@needs_linux
def test_numbers_that_are_no_ordinary_ones():
    """NaN, infinity, halves to even, what rounds to infinity, and denormals, through a product with the unit matrix."""
    text = """<ir_version: 10, opset_import: ["": 18]>
    g (float[N,16] x, float[16,16] w) => (float[N,16] y) { y = MatMul (x, w) }"""
    model = from_text(text, w=np.eye(16, dtype=np.float32))
    ConvertBfloat16().apply(model, Context())
    x = np.zeros((20, 16), np.float32)
    special = [np.nan, np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, 1e-40, -65504.1]
    x[: len(special), 3] = special
    np.testing.assert_array_equal(emulate(model, {"x": x})["y"], oracle.run(model, {"x": x})["y"])


@needs_linux
def test_a_product_of_one_rounded_operand_stays_float32():
    """A weight that needs more digits than bfloat16 has, and an operand that was not cast."""
    text = """<ir_version: 10, opset_import: ["": 18]>
    g (float[20,16] x, float[16,24] w, float[20,16] z) => (float[20,24] y, float[20,20] p) {
        b = Cast <to = 16> (x)
        f = Cast <to = 1> (b)
        y = MatMul (f, w)
        t = Transpose (z)
        p = MatMul (f, t) }"""
    rng = np.random.default_rng(3)
    model = from_text(text, w=rng.normal(size=(16, 24)).astype(np.float32))
    lowered, _ = lower_for_gpu(model)
    bindings = [b for block in lowered.module["main"].body.blocks for b in block.bindings]
    products = [b.value for b in bindings if getattr(getattr(b.value, "op", None), "name", "") == "relax.matmul"]
    assert {str(a.ty.dtype) for call in products for a in call.args} == {"float32"}
    x = {name: rng.normal(size=(20, 16)).astype(np.float32) for name in ("x", "z")}
    check(emulate(model, x), oracle.run(model, x))


@needs_linux
@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
def test_what_is_cast_there_and_back_is_rounded_within_a_kernel(arch):
    """TVM computes bfloat16 in float32 on processors without it, and two casts in one kernel would be nothing."""
    text = """<ir_version: 10, opset_import: ["": 18]>
    g (float[N,16] x) => (float[N,16] y, bfloat16[N,16] n) {
        a = Neg (x)
        b = Cast <to = 16> (a)
        c = Cast <to = 1> (b)
        y = Add (c, x)
        d = Neg (x)
        n = Cast <to = 16> (d)
    }"""
    model, x = from_text(text), {"x": np.random.default_rng(5).normal(size=(7, 16)).astype(np.float32)}
    x["x"][0, :6] = np.nan, np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8  # halves go to the even neighbour
    want, got = oracle.run(model, x), emulate(model, x, arch=arch)
    np.testing.assert_array_equal(got["y"], want["y"])


@needs_linux
def test_kernels_one_by_one(rounded):
    """The tool that checks each kernel hands bfloat16 over, which numpy has no type of its own for."""
    found = check_kernels(rounded, feeds(1), sample=1)
    assert not found.unchecked
    assert max(kernel.error for kernel in found.kernels) < 1e-3
    assert found.output_error < 1e-3
