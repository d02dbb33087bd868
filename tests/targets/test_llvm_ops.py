"""Operators that move values, against onnxruntime over generated shapes: transposes, slices, and what they make up."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import graphopt
from graphopt import oracle
from graphopt.testing import from_text

# No shrinking: each example compiles a model, and a failure must be told in seconds.
EXAMPLES = settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CPUS = st.sampled_from(["native", "x86-64-v3"])


def shape(dims) -> str:
    return "float[" + ",".join(map(str, dims)) + "]"


@EXAMPLES
@given(st.lists(st.integers(1, 19), min_size=2, max_size=5), st.randoms(use_true_random=False), CPUS)
def test_transpose(check, dims: list[int], random, mcpu: str):
    """Any order of any axes, of sizes that fill vectors and that don't."""
    perm = list(range(len(dims)))
    random.shuffle(perm)
    y = shape([dims[k] for k in perm])
    check(f"g ({shape(dims)} x) => ({y} y) {{ y = Transpose<perm = {perm}>(x) }}", mcpu, left=None, rtol=0)


@pytest.mark.parametrize("mcpu", ["native", "x86-64-v3"])
@pytest.mark.parametrize("dims", [(2, 3, 37, 5), (1, 4, 20, 20), (3, 2, 1, 70), (2, 21, 40, 4)])
def test_channels_to_positions_and_back(check, dims: tuple[int, ...], mcpu: str):
    """Pictures of two to four channels take a way of their own, both ways."""
    n, c, h, w = dims
    check(
        f"""g ({shape(dims)} x) => ({shape((n, h, w, c))} y, {shape((n, w, c, h))} z) {{
            y = Transpose<perm = [0, 2, 3, 1]>(x)  z = Transpose<perm = [0, 3, 1, 2]>(x) }}""",
        mcpu, rtol=0,
    )  # fmt: skip


def test_transpose_with_an_open_batch(check):
    check(
        "g (float[N,3,20,9] x) => (float[N,20,9,3] y) { y = Transpose<perm = [0, 2, 3, 1]>(x) }",
        rtol=0,
    )


@st.composite
def slices(draw: st.DrawFn):
    """A size, and a start, end and step of either sign that take something of it."""
    size = draw(st.integers(2, 14))
    step = draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
    first, last = draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1))
    low, high = sorted((first, last))
    if step > 0:
        return size, low, draw(st.sampled_from([high + 1, size + 5])), step
    return size, high, draw(st.sampled_from([low - 1 if low else -size - 1, -size - 7])), step


@EXAMPLES
@given(slices(), slices(), st.integers(1, 20), CPUS)
def test_slice_of_positions(check, down, across, channels: int, mcpu: str):
    """Any step either way, of what a pooling has left channels-last; then a second slice of the slice."""
    (h, top, bottom, dh), (w, left, right, dw) = down, across
    rows, columns = len(range(h)[top:bottom:dh]), len(range(w)[left:right:dw])
    y, z = shape((2, channels, rows, columns)), shape((2, channels, rows - rows // 2, columns))
    check(
        f"""g ({shape((2, channels, h, w))} x, int64[2] s, int64[2] e, int64[2] a, int64[2] t, int64[1] o, int64[1] m,
              int64[1] two) => ({y} y, {z} z) {{
            p = MaxPool<kernel_shape = [1, 1]>(x)  y0 = Slice(p, s, e, a, t)  y = Relu(y0)  z0 = Slice(y0, o, m, two)
            z = Relu(z0) }}""",
        mcpu, None if columns == 1 else frozenset(), rtol=0,
        s=np.array([top, left]), e=np.array([bottom, right]), a=np.array([2, -1]), t=np.array([dh, dw]),
        o=np.array([rows // 2]), m=np.array([2**40]), two=np.array([2]),
    )  # fmt: skip


@EXAMPLES
@given(st.integers(1, 9), st.integers(2, 9), st.sampled_from([1, 3, 5]), CPUS)
def test_each_four_pixels_into_one(check, h: int, w: int, channels: int, mcpu: str):
    """A detector's first layer: strided slices of the input, joined as channels."""
    arrays = {
        "one": np.array([1]),
        "zero": np.array([0]),
        "two": np.array([2]),
        "three": np.array([3]),
        "end": np.array([2**62]),
    }
    constants = ", ".join(f"int64[1] {name}" for name in arrays)
    dims = (1, channels, 2 * h, 2 * w)
    check(
        f"""g ({shape(dims)} x, {constants}, {shape((7, 4 * channels, 1, 1))} k) => ({shape((1, 7, h, w))} y) {{
            e = Slice(x, zero, end, two, two)  o = Slice(x, one, end, two, two)
            ee = Slice(e, zero, end, three, two)  oe = Slice(o, zero, end, three, two)
            eo = Slice(e, one, end, three, two)  oo = Slice(o, one, end, three, two)
            c = Concat<axis = 1>(ee, oe, eo, oo)  y = Conv(c, k) }}""",
        mcpu, k=np.random.default_rng(0).standard_normal((7, 4 * channels, 1, 1)).astype(np.float32) / 4, **arrays,
    )  # fmt: skip


def test_slices_of_the_batch_stay_with_tvm(check):
    check(
        """g (float[4,5,6,6] x, int64[1] one, int64[1] three, int64[1] zero) => (float[2,5,6,6] y) {
            p = MaxPool<kernel_shape = [1, 1]>(x)  s = Slice(p, one, three, zero)  y = Relu(s) }""",
        left={"Slice"}, one=np.array([1]), three=np.array([3]), zero=np.array([0]),
    )  # fmt: skip


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize(("op", "dtype", "all_alike"), [
    ("ArgMax", "uint8", 0), ("ArgMax", "int8", -128), ("ArgMax", "float", -np.inf), ("ArgMin", "float", np.inf),
    ("ArgMin", "int32", 2**31 - 1), ("ArgMax", "float", 1.5),
])  # fmt: skip
def test_an_index_of_an_extreme_is_one_where_all_are_the_least_number(op, dtype, all_alike, last):
    text = f"g ({dtype}[2,5] x) => (int64[2,1] y) {{ y = {op} <axis=1, select_last_index={last}> (x) }}"
    model = from_text(f'<ir_version: 10, opset_import: ["": 20]> {text}')
    x = np.full((2, 5), all_alike, "float32" if dtype == "float" else dtype)
    x[1, 2] = 3
    feeds = {"x": x}
    program = graphopt.compile(model, "llvm{threads=1}", "", verify=False, fallback=False)
    np.testing.assert_array_equal(program.run(feeds)["y"], oracle.run(model, feeds)["y"])
