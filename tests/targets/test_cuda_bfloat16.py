"""Products of bfloat16 on tensor cores, summed in float32: the CUDA C itself, emulated on the CPU, against numpy."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tvm import relax

from graphopt.targets.cuda.machine_code import compiler, sass
from graphopt.targets.cuda.machine_code.bfloat16 import with_shared_loads
from graphopt.testing.cuda_relax import compile_relax, emulate_relax

needs_linux = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(ml_dtypes.bfloat16)


def matmul(_: Any, a: Any, b: Any) -> Any:
    return relax.op.matmul(a, b, out_dtype="float32")


def matmul_by_columns(_: Any, a: Any, b: Any) -> Any:
    return relax.op.matmul(a, relax.op.permute_dims(b), out_dtype="float32")


@needs_linux
@settings(max_examples=5, deadline=None, phases=[Phase.generate])
@given(rows=st.integers(2, 70), inner=st.integers(2, 100), columns=st.integers(2, 70), by_columns=st.booleans())
def test_products_of_any_size_are_those_of_float32(rows, inner, columns, by_columns):
    """A product of two bfloat16 is exact in float32; only the order of the sum differs."""
    rng = np.random.default_rng(rows)
    a, b = normal(rng, rows, inner), normal(rng, inner, columns)
    given = [a, b.T.copy()] if by_columns else [a, b]
    got, rule = emulate_relax(matmul_by_columns if by_columns else matmul, given)
    assert rule == "TensorCores"
    np.testing.assert_allclose(got, a.astype(np.float32) @ b.astype(np.float32), atol=2e-5, rtol=1e-5)


@needs_linux
def test_a_convolution_with_bias_and_activation_is_rounded_once():
    rng = np.random.default_rng(0)
    x, w, bias = normal(rng, 1, 9, 7, 24), normal(rng, 3, 3, 24, 40), rng.normal(size=40).astype(np.float32)

    def make(builder: Any, x: Any, w: Any, bias: Any) -> Any:
        layout = {"data_layout": "NHWC", "kernel_layout": "HWIO", "out_dtype": "float32"}
        total = builder.emit(relax.op.nn.conv2d(x, w, padding=1, **layout))
        return relax.op.astype(relax.op.nn.relu(relax.op.add(total, bias)), "bfloat16")

    padded = np.pad(x.astype(np.float32), [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    expected = np.maximum(np.einsum("nhwcyx,yxco->nhwo", windows, w.astype(np.float32)) + bias, 0)
    got, rule = emulate_relax(make, [x, w, bias])
    assert rule == "TensorCores"
    assert got.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), expected, rtol=2**-8, atol=1e-4)


def test_an_old_gpu_has_no_such_tensor_cores():
    arrays = [np.zeros((32, 32), ml_dtypes.bfloat16)] * 2
    *_, rule = compile_relax(matmul, arrays, "sm_75")
    assert rule != "TensorCores"


def test_only_sources_with_fragments_of_bfloat16_get_the_loads():
    half = compile_relax(matmul, [np.zeros((32, 32), np.float16)] * 2)[0]
    assert "matrix_a" in half
    assert with_shared_loads(half) == half
    source = compile_relax(matmul, [np.zeros((32, 32), ml_dtypes.bfloat16)] * 2)[0]
    assert source.count("m16n16k16.shared.bf16") == 3


@pytest.mark.skipif(set(compiler.routes()) == {"source"}, reason="neither nvcc nor NVRTC here")
def test_the_compiler_takes_the_loads():
    """In both orders of the right operand; with a disassembler, tensor-core instructions and asynchronous copies."""
    for make in (matmul, matmul_by_columns):
        source = compile_relax(make, [np.zeros((64, 64), ml_dtypes.bfloat16)] * 2)[0]
        binary = compiler.compile_source(source, "sm_80")
        (found,) = sass.instructions(binary, source)[0].values()
        assert found.matrix >= 2
        assert found.copies >= 2
