"""Winograd along a line: the matrices, the kernel against onnxruntime, its error, and when it is chosen."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt.targets.llvm.kernels import winograd_line
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.kernels.window import Conv
from graphopt.targets.llvm.plan import choice
from graphopt.targets.lowering.canonical import canonicalise
from graphopt.testing import from_text

# No shrinking: each example compiles a model, and a failure must be told in seconds.
EXAMPLES = settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
M = winograd_line.M


@pytest.mark.parametrize("taps", [3, 4, 5, 6, 7, 8, 9, 31, 64])
def test_the_matrices_compute_a_convolution(taps: int):
    """In float64 but for the rounding of G's fractions: every output of a tile, block by block."""
    s, rng = winograd_line.scheme(taps), np.random.default_rng(0)
    d, g = rng.standard_normal(M + s.blocks * s.r), rng.standard_normal(taps)
    cut = np.zeros(s.blocks * s.r)
    cut[:taps] = g
    y = np.zeros(M)
    for b in range(s.blocks):
        y += np.array(s.at) @ ((np.array(s.g) @ cut[b * s.r :][: s.r]) * (np.array(s.bt) @ d[b * s.r :][: s.a]))
    np.testing.assert_allclose(y, [d[i : i + taps] @ g for i in range(M)], atol=1e-11)
    assert s.blocks == 1 or s.r == M  # tiles are shared between blocks


@pytest.fixture
def only_winograd(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choice, "convolution", lambda *_: [choice.Candidate("winograd-line", None, 1.0)])


def line(n, ci: int, co: int, width: int, taps: int, pads: tuple[int, int], rest: str, image: bool):
    """ONNX text of a convolution along a line, given as one or as an image of one column."""
    one, out = (",1" if image else ""), width + sum(pads) - taps + 1
    spread = f"{pads[0]}, 0, {pads[1]}, 0" if image else f"{pads[0]}, {pads[1]}"
    return f"""g (float[{n},{ci},{width}{one}] x, float[{n},{co},{out}{one}] r, float[{co},{ci},{taps}{one}] w,
                  float[{co}] b) => (float[{n},{co},{out}{one}] y) {{
        c = Conv<pads = [{spread}]>(x, w, b)  {rest} }}"""


def arrays(ci: int, co: int, taps: int, image: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((co, ci, taps, *([1] * image))) / np.sqrt(ci * taps)
    return {"w": w.astype(np.float32), "b": rng.standard_normal(co).astype(np.float32)}


@EXAMPLES
@given(
    n=st.sampled_from([1, 2]),
    ci=st.sampled_from([16, 17, 24, 36, 64]),
    co=st.sampled_from([16, 19, 40, 70, 128]),
    taps=st.integers(3, 40),
    more=st.integers(0, 50),
    pads=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    rest=st.sampled_from(["a = Add(c, r)  y = Relu(a)", "t = Sigmoid(c)  y = Add(t, r)"]),
    image=st.booleans(),
    mcpu=st.sampled_from(["native", "x86-64-v3"]),
)
def test_kernel(check, only_winograd, n, ci, co, taps, more, pads, rest, image: bool, mcpu: str):
    """Lines of any length, borders wider than tiles, channels that leave parts of vectors and panels over."""
    width = max(2 * M + taps - 1 - sum(pads), 1) + more
    text = line(n, ci, co, width, taps, pads, rest, image)
    check(text, mcpu, None, rtol=2e-5, **arrays(ci, co, taps, image))


def test_long_inner_dimension_in_blocks(check, only_winograd):
    """Products that wait for the next block of weights, and the tile of rows that are left over."""
    check(line(1, 200, 36, 41, 30, (14, 15), "y = Add(c, r)", True), left=None, rtol=2e-5, **arrays(200, 36, 30, True))


def test_open_batch(check, only_winograd):
    text = line(3, 16, 32, 30, 5, (2, 2), "y = Add(c, r)", False).replace("float[3,", "float[N,")
    rng = np.random.default_rng(1)
    feeds = {name: rng.standard_normal((3, c, 30)).astype(np.float32) for name, c in (("x", 16), ("r", 32))}
    check(text, left=None, feeds=feeds, rtol=2e-5, **arrays(16, 32, 5, False))


@pytest.mark.parametrize("taps", [3, 4, 5, 64])
def test_error(check, only_winograd, taps: int):
    """Rounding costs some times the direct form's few 1e-7, of the largest output."""
    check(
        line(1, 64, 64, 130, taps, (1, 1), "y = Add(c, r)", False), left=None, rtol=1e-5, **arrays(64, 64, taps, False)
    )


ISA = Isa(16, 32)
LINE = {"n": 1, "h": 1, "w": 512, "ci": 256, "co": 512, "kernel": (1, 5)}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({}, True, id="a file classifier's"),
        pytest.param({"w": 128, "ci": 1024, "co": 128, "kernel": (1, 64), "pads": (0, 31, 0, 32)}, True, id="CREPE's"),
        pytest.param({"strides": (1, 2)}, False, id="stride"),
        pytest.param({"dilations": (1, 2)}, False, id="dilation"),
        pytest.param({"group": 2}, False, id="groups"),
        pytest.param({"kernel": (1, 2)}, False, id="two taps"),
        pytest.param({"ci": 8}, False, id="few channels"),
        pytest.param({"h": 3}, False, id="several lines"),
        pytest.param({"w": 9}, False, id="two tiles would be too many"),
    ],
)
def test_where_it_is_first(changed: dict, expected: bool):
    first = choice.convolution(Conv(**(LINE | changed)), ISA)[0]
    assert (first.algorithm == "winograd-line") == expected


def test_weights_that_stream_past_few_tiles_stay_direct():
    """Transformed weights are 7 / 4 as large: eight tiles don't pay for them."""
    c = Conv(1, 1, 32, 256, 512, (1, 8), pads=(0, 3, 0, 4))
    assert choice.convolution(c, ISA)[0].algorithm != "winograd-line"


def test_a_transpose_in_front_is_none():
    """Positions by channels as the kernel reads them, whatever ONNX calls them: nothing is turned."""
    from graphopt.targets.llvm.cpu import resolve
    from graphopt.targets.llvm.plan import plan

    model = from_text(
        """<ir_version: 9, opset_import: ["": 17]>
           g (float[1,64,24] x, float[32,24,5,1] w, int64[1] last) => (float[1,32,1,1] y) {
            u = Unsqueeze(x, last)  t = Transpose<perm = [0, 2, 1, 3]>(u)  c = Conv(t, w)  y = GlobalMaxPool(c) }""",
        w=np.ones((32, 24, 5, 1), np.float32), last=np.array([3]),
    )  # fmt: skip
    model = canonicalise(model)
    plan(model, resolve("native"), parallel=False)
    assert "Transpose" not in {node.op_type for node in model.graph}
