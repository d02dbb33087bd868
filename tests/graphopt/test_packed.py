"""Weights kept in few bits: what is stored comes back, and layouts by steps are those of the numpy they stand for."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.packed import Packed, dequantize, from_bytes, multiply, nbytes_of, pad, reshape, run, to_bytes, transpose

EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)


@EXAMPLES
@given(st.sampled_from(["int4", "uint4", "int8", "uint8"]), st.integers(0, 9), st.integers(1, 5), st.integers(0, 99))
def test_bytes_come_back(name, rows, columns, seed):
    dtype = np.dtype(getattr(ml_dtypes, name)) if "4" in name else np.dtype(name)
    low = 0 if name.startswith("u") else -8
    array = np.random.default_rng(seed).integers(low, low + 16, (rows, columns)).astype(dtype)
    data = to_bytes(array)
    assert len(data) == nbytes_of(dtype, array.shape)
    back = from_bytes(data, dtype, array.shape)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back.astype(int), array.astype(int))


@EXAMPLES
@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from([0, 7, 16]), st.integers(0, 1), st.integers(0, 99))
def test_dequantized_as_onnx_does(outer, inner, block, axis, seed):
    rng = np.random.default_rng(seed)
    shape = (outer, inner) if axis else (inner, outer)
    q = rng.integers(0, 16, shape)
    along = [-(-inner // block) if i == axis else outer for i in range(2)] if block else [inner]
    scale, zero = rng.uniform(0.1, 1, along).astype(np.float32), rng.integers(0, 16, along)
    for at, got in np.ndenumerate(dequantize(q, scale, zero, axis, block)):
        place = tuple(i // block if j == axis else i for j, i in enumerate(at)) if block else (at[axis],)
        assert got == np.float32(q[at] - zero[place]) * scale[place]


def test_steps():
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    steps = (transpose(2, 0, 1), pad(2, 5), reshape(8, 5), multiply(1, [[1, 0, 2, 0, 7]]))
    want = a.transpose(2, 0, 1).reshape(8, 3)
    np.testing.assert_array_equal(run(a, steps), want[:, :1] + 2 * want[:, 2:])
    with pytest.raises(ValueError, match="reshape"):
        Packed(np.zeros(6, np.int8), np.ones((), np.float32), np.zeros((), np.int8), 0, 0, (reshape(5),)).array()
    with pytest.raises(ValueError, match="negative"):
        run(a, [pad(0, 1)])
