"""Asynchronous copies as wide as rows allow: of 16, 8 and 4 bytes, at a convolution's border too."""

from __future__ import annotations

import re
import shutil
import sys
from typing import Any

import numpy as np
import pytest
from tvm import relax

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
