"""Convolutions whose outermost taps meet nothing but padding are computed without them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import oracle
from graphopt.targets.llvm.plan.spelled import spell
from graphopt.testing import from_text, random_feeds


def convolution(dims, w: np.ndarray, strides, dilations, pads, group: int = 1):
    shape, how = ",".join(map(str, w.shape)), f"strides = {list(strides)}, dilations = {list(dilations)}"
    return from_text(
        f"""<ir_version: 9, opset_import: ["": 17]>
        g (float[{",".join(map(str, dims))}] x, float[{shape}] w) => (float[{",".join("nchw"[: len(dims)])}] y) {{
            y = Conv<{how}, pads = {list(pads)}, group = {group}>(x, w)
        }}""",
        w=w,
    )  # fmt: skip


def kernel(model) -> list[int]:
    return list(model.graph.node(0).inputs[1].shape[2:])


@st.composite
def axes(draw: st.DrawFn):
    """(size, taps, stride, dilation, pads) with at least one output."""
    size, taps, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    low, high = draw(st.integers(0, 14)), draw(st.integers(0, 14))
    missing = max(0, dilation * (taps - 1) + 1 - size - low - high)
    return size, taps, draw(st.integers(1, 3)), dilation, (low + missing, high)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(axes(), axes(), st.booleans(), st.sampled_from([1, 2]))
def test_any_padding(down, across, line: bool, group: int):
    """The same results, and at both ends a tap that meets a position, unless padding by whole taps can't say so."""
    chosen = [across] if line else [down, across]
    w = np.random.default_rng(0).standard_normal((4, 4 // group, *(a[1] for a in chosen))).astype(np.float32)
    pads = [a[4][0] for a in chosen] + [a[4][1] for a in chosen]
    model = convolution([2, 4, *(a[0] for a in chosen)], w, [a[2] for a in chosen], [a[3] for a in chosen], pads, group)
    feeds = random_feeds(model)
    want = oracle.run(model, feeds)["y"]
    spell(model)
    got = oracle.run(model, feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    left = list(model.graph.node(0).attributes.get_ints("pads", [0] * 2 * len(chosen)))
    for axis, (size, _, stride, dilation, _) in enumerate(chosen):
        taps, low, high = kernel(model)[axis], left[axis], left[len(chosen) + axis]
        reach = (want.shape[2 + axis] - 1) * stride
        assert taps == 1 or low < dilation or reach - low >= 0
        assert taps == 1 or high < dilation or (taps - 1) * dilation - low < size


@pytest.mark.parametrize(
    ("dims", "kernel_size", "strides", "dilations", "pads", "expected"),
    [
        ((1, 4, 8), (64,), [1], [1], (31, 32), [15]),
        ((1, 4, 16), (64,), [1], [1], (31, 32), [31]),
        ((1, 4, 32), (64,), [1], [1], (31, 32), [63]),
        ((1, 4, 64), (64,), [1], [1], (31, 32), [64]),
        ((1, 4, 1, 1), (3, 3), [1, 1], [1, 1], (1, 1, 1, 1), [1, 1]),
        ((1, 4, 1, 2), (3, 3), [1, 1], [1, 1], (1, 1, 1, 1), [1, 3]),
        ((1, 4, 14, 40), (3, 3), [1, 1], [18, 18], (18, 18, 18, 18), [1, 3]),
        ((1, 4, 2), (7,), [1], [1], (3, 3), [3]),
    ],
)
def test_what_is_left(dims, kernel_size, strides, dilations, pads, expected: list[int]):
    """CREPE's last layers, images of one position, dilations as far as the image."""
    model = convolution(dims, np.ones((4, 4, *kernel_size), np.float32), strides, dilations, pads)
    spell(model)
    assert kernel(model) == expected


def test_a_weight_for_two_lines():
    """The longer line keeps all taps of the weight that both share."""
    w = np.random.default_rng(0).standard_normal((4, 4, 9)).astype(np.float32)
    model = from_text(
        """<ir_version: 9, opset_import: ["": 17]> g (float[1,4,2] x, float[1,4,9] z, float[4,4,9] w)
           => (float[1,4,2] y, float[1,4,9] v) { y = Conv<pads = [4, 4]>(x, w)  v = Conv<pads = [4, 4]>(z, w) }""",
        w=w,
    )
    feeds = random_feeds(model)
    want = oracle.run(model, feeds)
    spell(model)
    assert [node.inputs[1].shape[2] for node in model.graph] == [3, 9]
    got = oracle.run(model, feeds)
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-6)


def test_open_length_keeps_all_taps():
    model = convolution((1, 4, "L"), np.ones((4, 4, 9), np.float32), [1], [1], (4, 4))
    spell(model)
    assert kernel(model) == [9]


def test_compiled(check):
    """Through the planner: a line of eight positions and 64 taps takes the direct form, Relu with it."""
    w = np.random.default_rng(0).standard_normal((19, 5, 64)).astype(np.float32)
    check(
        "g (float[2,5,8] x, float[19,5,64] w) => (float[2,19,8] y) { c = Conv<pads = [31, 32]>(x, w)  y = Relu(c) }",
        w=w,
    )  # fmt: skip
