"""Products of one-hot vectors as rows of a table: bit for bit what they were, and left alone where they differ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import oracle
from graphopt.targets.llvm.plan.one_hot import look_up
from graphopt.testing import from_text, op_types

EXAMPLES = settings(max_examples=20, deadline=None, derandomize=True)
ON = np.array([0.0, 1.0], np.float32)


def model_of(body: str, **arrays):
    """The model of a text whose `arrays` need no declaration."""
    types = {"float32": "float"}
    declared = [
        f"{types.get(str(a.dtype), a.dtype)}[{','.join(map(str, a.shape))}] {name}" for name, a in arrays.items()
    ]
    head, rest = body.split(")", 1)
    return from_text(f'<ir_version: 9, opset_import: ["": 17]>\n{", ".join([head, *declared])}){rest}', **arrays)


def rewritten(body: str, feeds: dict, **arrays):
    """The operators after rewriting; the results must be those from before."""
    model = model_of(body, **arrays)
    want = oracle.run(model, feeds)
    look_up(model)
    got = oracle.run(model, feeds)
    for name, expected in want.items():
        np.testing.assert_array_equal(got[name], expected)
    return op_types(model)


def numbers(dtype, *shape: int, low: int, high: int) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@EXAMPLES
@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from(["int64", "int32"]), st.booleans())
def test_one_hot_times_weights(depth: int, columns: int, dtype: str, matrix: bool):
    """Every number, in range or far out of it, negative ones too; a matrix of numbers or a vector and a Gemm."""
    dims = "2,40" if matrix else "80"
    body = f"""g ({dtype}[{dims}] i) => (float[{dims},{columns}] y) {{
        h = OneHot<axis = -1>(i, depth, values)  y = {"MatMul(h, w)" if matrix else "Gemm(h, w, b)"} }}"""
    ids = numbers(dtype, *map(int, dims.split(",")), low=-3 * depth - 2, high=3 * depth + 2)
    ids.reshape(-1)[:4] = [0, -1, np.iinfo(dtype).max, np.iinfo(dtype).min]
    arrays = {"w": weights(depth, columns), "depth": np.array([depth], dtype), "values": ON} | (
        {} if matrix else {"b": weights(columns)}
    )
    assert "Gather" in (ops := rewritten(body, {"i": ids}, **arrays))
    assert not {"OneHot", "MatMul", "Gemm"} & set(ops)


@EXAMPLES
@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from(["int64", "int32"]), st.booleans())
def test_one_hot_by_comparison(depth: int, columns: int, dtype: str, reverse: bool):
    """As TensorFlow writes it out: negative numbers are nobody's, and yield zeros."""
    body = f"""g ({dtype}[2,40,1] i) => (float[2,40,{columns}] y) {{
        e = Equal({"n, i" if reverse else "i, n"})  h = Cast<to = 1>(e)  y = MatMul(h, w) }}"""
    ids = numbers(dtype, 2, 40, 1, low=-depth - 2, high=2 * depth + 2)
    ops = rewritten(body, {"i": ids}, n=np.arange(depth, dtype=dtype).reshape(1, 1, -1), w=weights(depth, columns))
    assert ops == ["Squeeze", "Clip", "Gather"]


@EXAMPLES
@given(st.floats(1e-3, 3.0), st.integers(0, 255), st.booleans())
def test_quantized_one_hot_and_weights(scale: float, zero: int, per_column: bool):
    """Ones that 8 bits can't hold, round away or cut off; weights with a scale each, and a zero point."""
    body = """g (int64[2,40,1] i) => (float[2,40,5] y) {
        e = Equal(i, n)  h = Cast<to = 1>(e)  q = QuantizeLinear(h, s, z)  d = DequantizeLinear(q, s, z)
        v = DequantizeLinear<axis = 1>(w, sw, zw)  y = MatMul(d, v) }"""
    rng = np.random.default_rng(zero)
    size = (5,) if per_column else ()
    arrays = {
        "n": np.arange(7).reshape(1, 1, -1), "s": np.float32(scale), "z": np.uint8(zero),
        "w": rng.integers(-128, 128, (7, 5)).astype(np.int8), "sw": rng.uniform(0.01, 1, size).astype(np.float32),
        "zw": rng.integers(-4, 5, size).astype(np.int8),
    }  # fmt: skip
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    ids = numbers("int64", 2, 40, 1, low=-9, high=16)
    assert rewritten(body, {"i": ids}, **arrays) == ["Squeeze", "Clip", "Gather"]


def near_misses():
    w, n = weights(4, 3), np.arange(4)
    one = "g (int64[9] i) => (float[9,3] y) { h = OneHot<axis = AXIS>(i, depth, values)  y = MatMul(h, w) }"
    same = "g (int64[9,1] i) => (float[9,3] y) { e = Equal(i, n)  h = Cast<to = 1>(e)  y = MatMul(h, w) }"
    usual = {"w": w, "depth": np.array([4]), "values": ON}
    infinite = w.copy()
    infinite[1, 1] = np.inf
    yield "other values", one.replace("AXIS", "-1"), usual | {"values": np.array([0.0, 2.0], np.float32)}
    yield "the wrong way round", one.replace("AXIS", "-1"), usual | {"values": ON[::-1].copy()}
    yield "not finite", one.replace("AXIS", "-1"), usual | {"w": infinite}
    yield "out of order", same, {"w": w, "n": n[::-1].copy()}
    yield "not from zero", same, {"w": w, "n": n + 1}
    yield "gaps", same, {"w": w, "n": 2 * n}
    yield (
        "the other axis",
        "g (int64[4] i) => (float[5,3] y) { h = OneHot<axis = 0>(i, depth, values)  y = MatMul(h, w) }",
        usual | {"depth": np.array([5])},
    )
    yield (
        "floats compared",
        same.replace("int64[9,1] i", "float[9,1] i"),
        {"w": w, "n": n.astype(np.float32)},
    )


@pytest.mark.parametrize(("body", "arrays"), [pytest.param(*rest, id=name) for name, *rest in near_misses()])
def test_what_is_no_product_of_one_hot_vectors_stays(body: str, arrays: dict):
    model = model_of(body, **arrays)
    before = op_types(model)
    look_up(model)
    assert op_types(model) == before


GELU = "a = Add(g, b)  s = Mul(a, a)  t = Tanh(s)  u = Add(t, one)  y = Mul(a, u)"


def test_what_follows_rows_is_computed_on_the_table():
    """Bias and activation, where a value is read more than once; nothing but the lookup is left."""
    body = f"g (int64[3,7] i) => (float[3,7,5] y) {{ g = Gather(w, i)  {GELU} }}"
    ids = numbers("int64", 3, 7, low=-4, high=4)
    arrays = {"w": weights(4, 5), "b": weights(1, 1, 5), "one": np.array([1.0], np.float32)}
    assert rewritten(body, {"i": ids}, **arrays) == ["Gather"]


def test_two_results_of_rows_are_two_tables():
    body = """g (int64[21] i) => (float[21,5] y, float[21] z) {
        g = Gather(w, i)  y = Exp(g)  r = Relu(g)  z = ReduceMax<axes = [1], keepdims = 0>(r) }"""
    ids = numbers("int64", 21, low=-4, high=4)
    assert rewritten(body, {"i": ids}, w=weights(4, 5)) == ["Gather", "Gather", "ReduceMax"]


@pytest.mark.parametrize(
    ("body", "arrays"),
    [
        pytest.param("g (int64[3] i) => (float[3,5] y) { g = Gather(w, i)  y = Exp(g) }", {}, id="few rows"),
        pytest.param("g (int64[N] i) => (float[N,5] y) { g = Gather(w, i)  y = Exp(g) }", {}, id="any number of rows"),
        pytest.param(
            "g (int64[9] i) => (float[9,5] y) { g = Gather(w, i)  y = Add(g, c) }", {"c": weights(9, 5)},
            id="a constant for each place",
        ),
        pytest.param(
            "g (int64[9] i) => (float[2,9,5] y) { g = Gather(w, i)  y = Add(g, c) }", {"c": weights(2, 1, 5)},
            id="more than the rows",
        ),
        pytest.param(
            "g (int64[9] i, float[9,5] x) => (float[9,5] y) { g = Gather(w, i)  y = Add(g, x) }", {}, id="another value"
        ),
        pytest.param(
            "g (int64[9] i) => (float[9,5] y) { g = Gather(w, i)  y = Softmax<axis = 0>(g) }", {}, id="across rows"
        ),
        pytest.param(
            "g (int64[9] i) => (float[4,9] y) { g = Gather<axis = 1>(w, i)  y = Exp(g) }", {}, id="columns"
        ),
    ],
)  # fmt: skip
def test_what_stays_behind_the_rows(body: str, arrays: dict):
    model = model_of(body, w=weights(4, 5), **arrays)
    before = op_types(model)
    look_up(model)
    assert op_types(model) == before


def test_compiled(check):
    """From bytes to activations, as a file classifier begins."""
    ids = np.array([[0, 9, 5, -1, 10, 300, -(2**31), 2**31 - 1] * 8], np.int32)
    check(
        """g (int32[1,64] x, int64[3] numbers, int64[3] rows, int32[1,1,10] n, float[10,21] w, float[1,1,21] b)
           => (float[1,16,84] y) {
            i = Reshape(x, numbers)  e = Equal(i, n)  h = Cast<to = 1>(e)  m = MatMul(h, w)  a = Add(m, b)
            t = Tanh(a)  p = Mul(a, t)  y = Reshape(p, rows) }""",
        left={"Squeeze", "Clip"}, feeds={"x": ids}, numbers=np.array([1, 64, 1]), rows=np.array([1, 16, 84]),
        n=np.arange(10, dtype=np.int32).reshape(1, 1, 10), w=weights(10, 21), b=weights(1, 1, 21),
    )  # fmt: skip
