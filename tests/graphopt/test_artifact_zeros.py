"""Sparse tensors in an artifact: exact, small, and refused when what is stored is not what was encoded."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt
from graphopt.artifact import zeros
from graphopt.artifact.store import Place, Store, view
from graphopt.testing import from_text

TYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.int32, np.bool_, np.complex128]


def stored(array: np.ndarray) -> tuple[Place, np.ndarray]:
    """`array` through a store and back, behind another piece."""
    store = Store()
    store.add(lambda: b"other", 1)
    place = store.add(array.tobytes, array.itemsize)
    data = b"".join(bytes(piece) for piece in store.content().pieces())
    assert len(data) == store.nbytes
    return place, view(memoryview(data), place, array.dtype, list(array.shape))


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(TYPES),
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.7, 1.0]),
    seed=st.integers(0, 99),
)
def test_every_bit_comes_back(dtype: type, shape: list[int], density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = np.where(rng.random(shape) < density, rng.standard_normal(shape) * 50, 0).astype(dtype)
    place, back = stored(array)
    assert back.tobytes() == array.tobytes()
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert place.offset % 64 == 0
    assert place.encoded is None or place.encoded <= zeros.WORTH * array.nbytes


def test_negative_zero_and_nan_are_values() -> None:
    array = np.zeros(5000, np.float32)
    array[[3, 99, 4999]] = -0.0, np.nan, np.inf
    place, back = stored(array)
    assert place.encoded == 625 + 3 * 4
    assert back.tobytes() == array.tobytes()


def test_what_is_not_mostly_zeros_is_not_copied() -> None:
    place, back = stored(np.arange(5000, dtype=np.float32))
    assert place.encoded is None
    assert not back.flags.owndata


@pytest.mark.parametrize("cut", [slice(0, 10), slice(0, -4)])
def test_another_number_of_elements_is_refused(cut: slice) -> None:
    array = np.zeros(1250, np.float32)
    array[::7] = 1
    data = zeros.encode(array.tobytes(), 4)
    assert data is not None
    with pytest.raises(ValueError, match="bytes"):
        zeros.decode(memoryview(data[cut]), np.empty(1250, np.float32))


def test_no_huge_tensor_from_few_bytes() -> None:
    with pytest.raises(ValueError, match="can't encode"):
        view(memoryview(bytes(64)), Place(0, 64), np.dtype(np.float32), [1 << 40])


def test_artifact_of_a_sparse_model_is_a_fraction_and_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((512, 512), np.float32)
    sparse = np.where(rng.random(dense.shape) < 0.1, dense, 0).astype(np.float32)
    x = rng.standard_normal((4, 512), np.float32)
    sizes: list[int] = []
    for w in (dense, sparse):
        model = from_text(
            '<ir_version: 8, opset_import: ["": 17]> g (float[4,512] x, float[512,512] w) => (float[4,512] y) '
            "{ y = MatMul(x, w) }",
            w=w,
        )
        path = tmp_path / "model.gopt"
        graphopt.compile(model, target="llvm{threads=1}", keep_source=True).save(path)
        loaded = graphopt.load(path)
        np.testing.assert_allclose(loaded(x), x @ w, rtol=0, atol=1e-4)
        given_back = graphopt.artifact.read(path).graph("after").graph.initializers["w"].const_value
        assert given_back is not None
        assert given_back.numpy().tobytes() == w.tobytes()
        data = sum(m.nbytes for name, m in loaded.manifest.members.items() if name.endswith(".bin"))
        sizes.append(data)
    assert sizes[1] <= 0.25 * sizes[0]
