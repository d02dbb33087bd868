"""Asynchronous copies as wide as rows allow: of 16, 8 and 4 bytes, at a convolution's border too."""

from __future__ import annotations

import re
import shutil
import sys
from typing import Any

import numpy as np
import pytest
from tvm import relax, te

from graphopt import artifact, oracle
from graphopt.base import Context
from graphopt.passes.convert_float16 import ConvertFloat16
from graphopt.targets.cuda import Cuda
from graphopt.targets.cuda.lowering.pixels import whole_pixels
from graphopt.testing import from_text
from graphopt.testing.cuda_emulation import emulate
from graphopt.testing.cuda_relax import compile_relax, emulate_relax

needs_linux = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")


def matmul(_: Any, a: Any, b: Any) -> Any:
    return relax.op.matmul(a, b, out_dtype="float32")


def convolution(_: Any, x: Any, w: Any) -> Any:
    return relax.op.nn.conv2d(x, w, padding=1, data_layout="NHWC", kernel_layout="HWIO", out_dtype="float32")


def loaded(source: str) -> tuple[set[int], bool]:
    """Bytes of the copies of a kernel, and whether threads load elements as well."""
    kernel = source[source.rindex("__global__") :]
    sizes = {int(size) for size in re.findall(r"ptx_cp_async_legacy\w*?_c[ag]_(\d+)_\w+\(", kernel)}
    return sizes, bool(re.search(r"shared_ptr\[.*\] = (condval|x\d_ptr)", kernel))


@pytest.mark.parametrize(
    ("inner", "columns", "sizes", "by_threads"),
    [
        (64, 64, {16}, False),
        (72, 36, {16, 8}, False),
        (36, 70, {8, 4}, False),
        (36, 67, {8}, True),
        (35, 64, {16}, True),
    ],
)
def test_rows_of_a_matrix_product(inner, columns, sizes, by_threads):
    """Each operand by its own rows; a row of odd length starts where no copy may."""
    source, _, rule = compile_relax(matmul, [np.zeros((96, inner), np.float16), np.zeros((inner, columns), np.float16)])
    assert rule == "TensorCores"
    assert loaded(source) == (sizes, by_threads)


@needs_linux
@pytest.mark.parametrize("channels", [2, 4, 24])
def test_pixels_of_few_channels_are_copied_whole_under_the_borders_condition(channels):
    rng = np.random.default_rng(channels)
    x, w = rng.normal(size=(1, 9, 7, channels)), rng.normal(size=(3, 3, channels, 40))
    arrays = [x.astype(np.float16), w.astype(np.float16)]
    source, _, rule = compile_relax(convolution, arrays)
    assert rule == "TensorCores"
    assert loaded(source) == ({16, min(16, 2 * channels)}, False)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(arrays[0].astype(np.float32), [(0, 0), (1, 1), (1, 1), (0, 0)]), (3, 3), (1, 2)
    )
    expected = np.einsum("nhwcyx,yxco->nhwo", windows, arrays[1].astype(np.float32))
    np.testing.assert_allclose(emulate_relax(convolution, arrays)[0], expected, atol=1e-2, rtol=1e-3)


@needs_linux
@pytest.mark.parametrize(("inner", "columns"), [(36, 70), (35, 67)])
def test_values_of_narrow_copies(inner, columns):
    rng = np.random.default_rng(inner)
    a, b = rng.normal(size=(70, inner)).astype(np.float16), rng.normal(size=(inner, columns)).astype(np.float16)
    expected = a.astype(np.float32) @ b.astype(np.float32)
    np.testing.assert_allclose(emulate_relax(matmul, [a, b])[0], expected, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(("dtype", "sums", "first"), [("float16", "float32", 1), ("int8", "int32", 2)])
def test_rows_that_start_between_multiples_are_left_to_another_schedule(dtype, sums, first):
    """A part of longer rows: no copy may start there."""

    def make(builder: Any, a: Any, b: Any) -> Any:
        def product(a: Any, b: Any) -> Any:
            k = te.reduce_axis((0, 64), "k")
            return te.compute(
                (96, 64), lambda i, j: te.sum(a[i, k + first].astype(sums) * b[k, j].astype(sums), axis=k)
            )

        return builder.call_te(product, a, b)

    *_, rule = compile_relax(make, [np.zeros((96, 72), dtype), np.zeros((64, 64), dtype)])
    assert rule != "TensorCores"


@needs_linux
def test_few_tiles_have_more_copies_under_way():
    """Five steps ahead in place of two, where the blocks are too few to fill the memory's latency otherwise."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(49, 320)).astype(np.float16), rng.normal(size=(320, 40)).astype(np.float16)
    source, *_ = compile_relax(matmul, [a, b])
    assert "async_wait_group_5()" in source
    many, *_ = compile_relax(matmul, [np.zeros((768, 320), np.float16), np.zeros((320, 768), np.float16)])
    assert "async_wait_group_2()" in many
    assert "async_wait_group_5()" not in many
    expected = a.astype(np.float32) @ b.astype(np.float32)
    np.testing.assert_allclose(emulate_relax(matmul, [a, b])[0], expected, atol=2e-2, rtol=1e-3)


def test_an_open_size_has_the_copies_of_a_large_one():
    model = from_text("""<ir_version: 10, opset_import: ["": 18]>
        net (float16[N, 320] x, float16[320, 40] w) => (float16[N, 40] y) { [mm] y = MatMul (x, w) }""")
    source = Cuda(arch="sm_80", compiler="source").build(model, Context()).files["kernels.cu"].decode()
    assert "async_wait_group_2()" in source
    assert "async_wait_group_5()" not in source


PICTURE = """<ir_version: 10, opset_import: ["": 18]>
net (float[1, 3, 13, 11] x, float[24, 3, 3, 3] w) => (float[1, 24, 7, 6] y) {
    [first] y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)
}"""


@needs_linux
def test_the_three_channels_of_a_picture_become_four(tmp_path):
    """Pixels and weights alike, the weights when compiling; a pixel is a copy of 8 bytes."""
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(24, 3, 3, 3)) / 4).astype(np.float32)
    plain = from_text(PICTURE, w=w)
    model = plain.clone()
    ConvertFloat16().apply(model, Context())
    program = Cuda(arch="sm_80", compiler="source").build(model, Context())
    assert [weight.shape for weight in program.weights.values() if weight.ndim == 4] == [(3, 3, 4, 24)]
    (product,) = [kernel for kernel in program.report["kernels"] if kernel["schedule"] == "TensorCores"]
    assert product["asynchronous_copies"] >= 4
    assert not loaded(program.files["kernels.cu"].decode())[1]
    saved = artifact.write(tmp_path / "p.gopt", program, target="cuda", before=model, after=model, report={})
    feeds = {"x": rng.normal(size=(1, 3, 13, 11)).astype(np.float32)}
    expected = oracle.run(plain, feeds)["y"]
    np.testing.assert_allclose(emulate(saved, feeds)["y"], expected, atol=1e-2 * np.abs(expected).max())
    assert program.report["macs"] == 27 * expected.size  # of the model, not of its padding


@pytest.mark.parametrize("channels", [1, 4, 9])
def test_other_channels_are_left_as_they_are(channels):
    def make(_: Any, x: Any, w: Any) -> Any:
        return convolution(_, x, w)

    arrays = [np.zeros((1, 8, 8, channels), np.float16), np.zeros((3, 3, channels, 8), np.float16)]
    builder = relax.BlockBuilder()
    given = [relax.Var(f"x{i}", relax.TensorType([*a.shape], "float16")) for i, a in enumerate(arrays)]
    with builder.function("main", given):
        with builder.dataflow():
            result = builder.emit_output(make(builder, *given))
        builder.emit_func_output(result)
    assert "pad(" not in whole_pixels(builder.get())["main"].script()


@needs_linux
def test_weights_of_integer_products_lie_along_the_sum(tmp_path):
    """[columns, k]: their fragments are by columns; values are onnxruntime's, exactly."""
    rng = np.random.default_rng(1)
    w = rng.integers(-127, 128, (40, 33)).astype(np.int8)
    model = from_text(
        """<ir_version: 10, opset_import: ["": 18]>
        net (uint8[37, 40] x, int8[40, 33] w, uint8 z) => (int32[37, 33] y) { [mm] y = MatMulInteger (x, w, z) }""",
        w=w,
        z=np.array(7, np.uint8),
    )
    program = Cuda(arch="sm_80", compiler="source").build(model, Context())
    assert "signed char, nvcuda::wmma::col_major" in program.files["kernels.cu"].decode()
    saved = artifact.write(tmp_path / "i.gopt", program, target="cuda", before=model, after=model, report={})
    feeds = {"x": rng.integers(0, 256, (37, 40)).astype(np.uint8)}
    np.testing.assert_array_equal(emulate(saved, feeds)["y"], oracle.run(model, feeds)["y"])
