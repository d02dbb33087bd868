"""Products of 8-bit integers on tensor cores, summed in int32: exact, as numpy has them, in the emulated CUDA C."""

from __future__ import annotations

import re
import shutil
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tvm import relax, te

from graphopt.targets.cuda.account.work import product_type
from graphopt.testing.cuda_relax import compile_relax, emulate_relax

needs_linux = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")


def emulated(make: Any, arrays: list[np.ndarray], arch: str = "sm_80", edit: Any = str) -> np.ndarray:
    result, rule = emulate_relax(make, arrays, arch, edit)
    assert rule == "TensorCores"
    return result


def random(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    """All values of the type, its ends included."""
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def matmul(_: Any, a: Any, b: Any) -> Any:
    """The right operand as [k, j]."""
    return relax.op.matmul(a, b, out_dtype="int32")


def matmul_by_columns(_: Any, a: Any, b: Any) -> Any:
    """The right operand as [j, k], as weights that are laid out for integers: read where they lie."""
    return relax.op.matmul(a, relax.op.permute_dims(b), out_dtype="int32")


@needs_linux
@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(
    sizes=st.tuples(st.integers(1, 70), st.integers(2, 150), st.integers(2, 70)),
    dtype=st.sampled_from(["int8", "uint8"]),
    by_columns=st.booleans(),
    arch=st.sampled_from(["sm_75", "sm_80"]),
)
def test_products_of_any_size_are_exact(sizes, dtype, by_columns, arch):
    rows, inner, columns = sizes
    rng = np.random.default_rng(rows)
    rows += rows == 1
    a, b = random(rng, dtype, rows, inner), random(rng, dtype, inner, columns)
    expected = a.astype(np.int32) @ b.astype(np.int32)
    got = emulated(matmul_by_columns, [a, b.T.copy()], arch) if by_columns else emulated(matmul, [a, b], arch)
    np.testing.assert_array_equal(got, expected)


def convolution(_: Any, x: Any, w: Any, **options: Any) -> Any:
    return relax.op.nn.conv2d(x, w, data_layout="NHWC", kernel_layout="OHWI", out_dtype="int32", **options)


def convolved(x: np.ndarray, w: np.ndarray, stride: int) -> np.ndarray:
    """By numpy, with a border of one zero; x is NHWC, w OHWI."""
    padded = np.pad(x.astype(np.int32), [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[1:3], (1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcyx,oyxc->nhwo", windows, w.astype(np.int32))


@needs_linux
@pytest.mark.parametrize(("arch", "channels", "stride"), [("sm_80", 32, 1), ("sm_75", 16, 2), ("sm_80", 5, 2)])
def test_convolutions_are_exact_with_a_border_of_zeros(arch, channels, stride):
    rng = np.random.default_rng(0)
    x, w = random(rng, "int8", 2, 9, 7, channels), random(rng, "int8", 24, 3, 3, channels)
    got = emulated(lambda *given: convolution(*given, padding=1, strides=stride), [x, w], arch)
    np.testing.assert_array_equal(got, convolved(x, w, stride))


def test_rows_of_16_bytes_are_copied_asynchronously_where_a_border_is_too():
    x, w = np.zeros((1, 14, 14, 64), np.int8), np.zeros((96, 3, 3, 64), np.int8)
    source, *_ = compile_relax(lambda *given: convolution(*given, padding=1), [x, w])
    assert "wmma::matrix_b, 16, 16, 16, signed char, nvcuda::wmma::col_major" in source
    kernel = source[source.index("conv2d_kernel(") :]
    assert len(re.findall(r"ptx_cp_async_legacy_pred_cg_16\w*\(", kernel)) >= 3  # two ahead, and those of the loop
    assert "condval" not in kernel  # what is loaded by a thread under a condition


@needs_linux
def test_scale_residual_rounding_and_clipping_are_computed_as_results_leave():
    """One kernel, whose values are those of numpy's float32 and rint, to the last bit."""
    rng = np.random.default_rng(1)
    a, b = random(rng, "int8", 40, 48), random(rng, "int8", 36, 48)
    residual, scale = random(rng, "int8", 40, 36), rng.uniform(1e-3, 4e-3, 36).astype(np.float32)

    def make(builder: Any, a: Any, b: Any, residual: Any, scale: Any) -> Any:
        total = builder.emit(matmul_by_columns(builder, a, b))
        real = builder.emit(relax.op.multiply(relax.op.astype(total, "float32"), scale))
        real = builder.emit(relax.op.add(real, relax.op.astype(residual, "float32")))
        return relax.op.astype(relax.op.clip(relax.op.round(real), -128, 127), "int8")

    expected = (a.astype(np.int32) @ b.astype(np.int32).T).astype(np.float32) * scale + residual.astype(np.float32)
    got = emulated(make, [a, b, residual, scale])
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, np.clip(np.rint(expected), -128, 127).astype(np.int8))


@pytest.mark.parametrize(("left", "right"), [("uint8", "int8"), ("int16", "int16")])
def test_what_tensor_cores_lack_gets_another_schedule(left, right):
    """wmma has products of two operands of one type, of 8 bits."""
    arrays = [np.zeros((32, 32), left), np.zeros((32, 32), right)]
    *_, rule = compile_relax(matmul, arrays)
    assert rule != "TensorCores"


@needs_linux
def test_a_wrong_column_is_seen():
    rng = np.random.default_rng(0)
    a, b = random(rng, "int8", 32, 64), random(rng, "int8", 32, 64)
    got = emulated(matmul_by_columns, [a, b], edit=lambda source: source.replace("col_major", "row_major"))
    assert (got != a.astype(np.int32) @ b.astype(np.int32).T).any()


@pytest.mark.parametrize(("dtype", "sums", "told"), [("int8", "int32", "int8"), ("float16", "float32", "float16")])
def test_estimates_take_the_peak_of_the_products_type(dtype, sums, told):
    a, b = (te.placeholder((32, 32), dtype, name=name) for name in "ab")
    k = te.reduce_axis((0, 32), "k")
    c = te.compute((32, 32), lambda i, j: te.sum(a[i, k].astype(sums) * b[k, j].astype(sums), axis=k))
    assert product_type(te.create_prim_func([a, b, c])) == told
