"""Products of computed matrices, rows picked by number, and RMS normalization, against onnxruntime."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# No shrinking: each example compiles a model, and a failure must be told in seconds.
EXAMPLES = settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CPUS = st.sampled_from(["native", "x86-64-v3"])
SIZES = st.integers(1, 70)


def shape(dims) -> str:
    return "float[" + ",".join(map(str, dims)) + "]"


@EXAMPLES
@given(
    st.sampled_from([((), ()), ((3,), (3,)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((), (2, 2)), ((2, 1, 2), (3, 1))]),
    SIZES, SIZES, SIZES, CPUS,
)  # fmt: skip
def test_product_of_two_computed_matrices(check, batches, m: int, k: int, n: int, mcpu: str):
    """Batches that are repeated on either side."""
    left, right = batches
    whole = np.broadcast_shapes(left, right)
    check(
        f"""g ({shape((*left, m, k))} a, {shape((*right, k, n))} b) => ({shape((*whole, m, n))} y) {{
            y = MatMul(a, b) }}""",
        mcpu,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_gather(check, dtype: str):
    """Embeddings; rows from the end; another axis; one of them."""
    rng = np.random.default_rng(0)
    feeds = {
        "i": rng.integers(-50, 50, (2, 7)).astype(dtype),
        "x": rng.standard_normal((3, 9, 20)).astype(np.float32),
    }
    check(
        f"""g ({dtype}[2,7] i, {shape((50, 37))} e, {shape((3, 9, 20))} x, {dtype}[2] j, {dtype} k) =>
              ({shape((2, 7, 37))} y, {shape((3, 2, 20))} z, {shape((3, 20))} u) {{
            y = Gather(e, i)  z = Gather<axis = 1>(x, j)  u = Gather<axis = 1>(x, k) }}""",
        feeds=feeds, rtol=0, e=rng.standard_normal((50, 37)).astype(np.float32), j=np.array([8, -9], dtype),
        k=np.array(-1, dtype),
    )  # fmt: skip


def test_gather_of_an_open_number_of_rows(check):
    feeds = {"i": np.array([[3, 0, 4]], np.int64)}
    e = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    check("g (int64[N,T] i, float[5,16] e) => (float[N,T,16] y) { y = Gather(e, i) }", feeds=feeds, rtol=0, e=e)


SPELLINGS = {
    "square, quotient": "s = Mul(x, x)  m = ReduceMean<axes = [-1]>(s)  a = Add(m, e)  r = Sqrt(a)  n = Div(x, r)",
    "power, reciprocal": """s = Pow(x, two)  m = ReduceMean<axes = [2]>(s)  a = Add(e, m)  r = Sqrt(a)
                            q = Reciprocal(r)  n = Mul(q, x)""",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("size", [7, 96])
def test_rms_normalization_however_it_is_written(check, spelling: str, size: int):
    check(
        f"""g ({shape((2, 5, size))} x, float e, float two, {shape((size,))} w) => ({shape((2, 5, size))} y) {{
            {SPELLINGS[spelling]}  y = Mul(n, w) }}""",
        e=np.array(1e-3, np.float32), two=np.array(2, np.float32),
        w=np.random.default_rng(0).uniform(0.5, 2, size).astype(np.float32),
    )  # fmt: skip


def test_a_quotient_by_another_values_mean_square_is_no_normalization(check):
    check(
        f"""g ({shape((2, 5, 8))} x, {shape((2, 5, 8))} z, float e) => ({shape((2, 5, 8))} y) {{
            s = Mul(z, z)  m = ReduceMean<axes = [-1]>(s)  a = Add(m, e)  r = Sqrt(a)  y = Div(x, r) }}""",
        left=None, e=np.array(1e-3, np.float32),
    )  # fmt: skip
