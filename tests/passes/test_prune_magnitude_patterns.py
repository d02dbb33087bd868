"""Blocks and N:M in the right axis, criteria, recovery, allocation, extremes: on small graphs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.base import Context
from graphopt.data import open_data
from graphopt.errors import DataError
from graphopt.oracle import run
from graphopt.passes.prune_magnitude import PruneMagnitude
from graphopt.passes.sparsity.patterns import parse, zeros
from graphopt.passes.sparsity.refit import refit, split
from graphopt.testing import apply, from_text

NET = """
<ir_version: 8, opset_import: ["": 17]>
g (float[n,3,8,8] x, float[16,3,3,3] w1, float[16] b1, float[16,16,3,3] w2, float[16] b2, float[1024,12] w3,
   float[12] b3, float[10,12] w4, float[10] b4) => (float[n,10] y) {
  c = Conv <pads = [1,1,1,1]> (x, w1, b1)
  r = Relu (c)
  d = Conv <pads = [1,1,1,1]> (r, w2, b2)
  s = Relu (d)
  f = Flatten (s)
  m = MatMul (f, w3)
  a = Add (m, b3)
  t = Relu (a)
  y = Gemm <transB = 1> (t, w4, b4)
}
"""


def net(seed: int = 0):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (1024, 12), "w4": (10, 12)}
    arrays = {k: rng.standard_normal(s) / np.sqrt(np.prod(s[1:] if len(s) > 2 else s[:1])) for k, s in shapes.items()}
    arrays |= {f"b{k}": 0.1 * rng.standard_normal(n) for k, n in ((1, 16), (2, 16), (3, 12), (4, 10))}
    return from_text(NET, **{name: a.astype(np.float32) for name, a in arrays.items()})


def data(n: int, seed: int = 1):
    rng = np.random.default_rng(seed)
    low = rng.standard_normal((n, 3, 4, 4))  # smooth pictures: inputs of neighbouring taps are alike
    return {"x": low.repeat(2, 2).repeat(2, 3).astype(np.float32)}


def context(model, n: int = 96) -> Context:
    return Context(calibration=open_data([data(n)], model))


def pruned(n: int = 96, **options):
    model = net()
    with_data = context(model, n)
    report = PruneMagnitude(**options).apply(model, with_data)
    return model, report


def array(model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()


def error(model) -> float:
    """Of the outputs on data that calibration has not seen, as a part of their power."""
    feeds = data(64, seed=9)
    want, got = (run(m, feeds)["y"] for m in (net(), model))
    return float(np.square(want - got).sum() / np.square(want - want.mean(axis=0)).sum())


@pytest.mark.parametrize(
    "options", [{"sparsity": 0.7}, {"pattern": "1:4", "exclude": ("c",)}, {"pattern": "4x4", "sparsity": 0.5}]
)
def test_recovery_helps_and_keeps_the_mask(options):
    alone, _ = pruned(recover=False, **options)
    again, report = pruned(**options)
    assert error(again) < 0.5 * error(alone)
    for masked, refitted in report.facts["error"].values():
        assert refitted <= masked + 1e-6
    count = [sum(int((array(m, f"w{k}") == 0).sum()) for k in range(1, 5)) for m in (alone, again)]
    assert count[1] == report.facts["zeros"]
    assert abs(count[0] - count[1]) <= 32  # blocks at the end of an axis are smaller


def test_without_data_nothing_is_refitted():
    model, report = apply(PruneMagnitude(sparsity=0.7), net())
    assert "error" not in report.facts
    before = net()
    for name in ("w1", "w2", "w3", "w4"):
        kept = array(model, name) != 0
        np.testing.assert_array_equal(array(model, name)[kept], array(before, name)[kept])


def test_n_of_m_holds_after_the_refit_along_the_inputs_of_every_operator():
    model, report = pruned(pattern="2:4")
    assert (np.count_nonzero(array(model, "w2").reshape(16, 4, 4, 3, 3), axis=2) <= 2).all()
    assert (np.count_nonzero(array(model, "w3").reshape(256, 4, 12), axis=1) <= 2).all()  # MatMul [K, N]
    assert (np.count_nonzero(array(model, "w4").reshape(10, 3, 4), axis=2) <= 2).all()  # Gemm with transB [N, K]
    assert any("no multiple of 4" in skip.reason for skip in report.skipped)  # 3 input channels
    assert np.count_nonzero(array(model, "w1")) == array(model, "w1").size


def blocks(w: np.ndarray, inputs: int, outputs: int) -> set[int]:
    """How many weights are not zero, over all blocks of w [N, K, ...]."""
    w = np.moveaxis(w, (0, 1), (-1, -2)) if w.ndim > 2 else w.T  # [..., K, N]
    k, n = w.shape[-2:]
    return {
        int(count)
        for i in range(0, k, inputs)
        for j in range(0, n, outputs)
        for count in np.count_nonzero(w[..., i : i + inputs, j : j + outputs], axis=(-2, -1)).reshape(-1)
    }


def test_blocks_go_whole_in_the_axes_that_they_name():
    model, _ = apply(PruneMagnitude(pattern="1x16", sparsity=0.5), net())
    assert blocks(array(model, "w2"), 1, 16) == {0, 16}
    model, _ = apply(PruneMagnitude(pattern="4x4", sparsity=0.5), net())
    assert blocks(array(model, "w2"), 4, 4) == {0, 16}
    assert blocks(array(model, "w3").T, 4, 4) == {0, 16}
    assert blocks(array(model, "w4"), 4, 4) == {0, 8, 16}  # 10 outputs: the last blocks are of 2
    assert blocks(array(model, "w1"), 4, 4) == {0, 12}  # 3 inputs


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3)),
    size=st.sampled_from(["1x2", "2x1", "4x4", "3x2"]),
    sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99]),
    norm=st.sampled_from(["l1", "l2"]),
)
def test_blocks_of_any_shape(shape, size: str, sparsity: float, norm):
    """As many blocks as asked for, the least of them, never all, whole ones only."""
    pattern = parse(size)
    assert pattern is not None
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    mask = zeros(w, pattern, sparsity, (1, 0), norm)
    assert mask.shape == w.shape
    assert not mask.all()
    n, k = -(-shape[0] // pattern.outputs), -(-shape[1] // pattern.inputs)
    gone = []
    for i in range(n):
        for j in range(k):
            for t in range(shape[2]):
                part = mask[
                    i * pattern.outputs : (i + 1) * pattern.outputs, j * pattern.inputs : (j + 1) * pattern.inputs, t
                ]
                assert part.all() or not part.any()
                gone.append(part.all())
    assert sum(gone) == min(round(sparsity * len(gone)), len(gone) - 1)


def test_the_criterion_that_knows_the_inputs_keeps_what_they_need():
    """Of two weights the smaller one stays whose input is a hundred times larger."""
    w = np.array([[1.0], [0.1]], np.float32)
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[n,2] x, float[2,1] w) => (float[n,1] y) { y = MatMul(x, w) }'
    )
    x = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32) * np.array([0.1, 10], np.float32)
    kept = {}
    for criterion in ("l2", "activation", "obs"):
        model = from_text(text, w=w)
        PruneMagnitude(criterion=criterion, recover=False).apply(
            model, Context(calibration=open_data([{"x": x}], model))
        )
        kept[criterion] = int(np.flatnonzero(array(model, "w"))[0])
    assert kept == {"l2": 0, "activation": 1, "obs": 1}


def test_obs_drops_what_others_can_stand_in_for():
    """Two inputs that are equal, and a third: one of the two goes though the third's weight is the smallest."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 256)).astype(np.float32)
    x = np.stack([a, a, b], axis=1)
    model = from_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[n,3] x, float[3,1] w) => (float[n,1] y) { y = MatMul(x, w) }',
        w=np.array([[1.0], [1.0], [0.9]], np.float32),
    )
    PruneMagnitude(sparsity=0.34, steps=1).apply(model, Context(calibration=open_data([{"x": x}], model)))
    w = array(model, "w")[:, 0]
    assert (w == 0).tolist() in ([True, False, False], [False, True, False])
    np.testing.assert_allclose(np.sort(w), [0, 0.9, 2], atol=0.02)


@pytest.mark.parametrize(("n", "k"), [(400, 20), (30, 50)])
def test_refit_is_the_least_squares_solution_on_its_support(n: int, k: int):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, k)) @ rng.standard_normal((k, k))  # inputs that can stand in for each other
    w = rng.standard_normal((4, k))
    kept = rng.random((4, k)) < 0.3
    fit = split(x, x @ w.T, centred=False)
    v = refit(fit, w, w, kept)
    assert not v[~kept].any()
    assert fit.error(v) <= fit.error(np.where(kept, w, 0))
    if n > k:
        best = np.zeros_like(w)
        for row in range(4):
            best[row, kept[row]] = np.linalg.lstsq(fit.x[:, kept[row]], fit.y[:, row], rcond=None)[0]
        assert fit.error(v) <= 1.05 * fit.error(best)


def test_sensitive_layers_keep_more():
    model, report = pruned(sparsity=0.8, scope="sensitivity", recover=False)
    share = report.facts["sparsity"]
    assert abs(report.facts["zeros"] / report.facts["weights"] - 0.8) < 1e-3
    assert share["w1"] < share["w3"]  # 432 weights that everything passes through, and 12288
    uniform, _ = pruned(sparsity=0.8, criterion="activation", recover=False)
    assert error(model) < error(uniform)


@pytest.mark.parametrize(
    "options", [{"sparsity": 0.99}, {"sparsity": 0.999, "scope": "global"}, {"sparsity": 0.99, "scope": "sensitivity"}]
)
def test_extremes_leave_something_and_warn(options):
    model, report = pruned(**options)
    for name in ("w1", "w2", "w3", "w4"):
        assert np.count_nonzero(array(model, name)) > 0
    assert any("have no weight left" in skip.reason for skip in report.skipped)
    assert np.isfinite(run(model, data(4))["y"]).all()


def test_batch_norm_is_taken_anew():
    rng = np.random.default_rng(0)
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n,3,8,8] x, float[8,3,3,3] w, float[8] s, float[8] b, float[8] m, float[8] v) => (float[n,8,6,6] y) {
          c = Conv (x, w)
          y = BatchNormalization (c, s, b, m, v)
        }
        """,
        w=rng.standard_normal((8, 3, 3, 3)).astype(np.float32), s=np.ones(8, np.float32), b=np.zeros(8, np.float32),
        m=np.zeros(8, np.float32), v=np.full(8, 27, np.float32),
    )  # fmt: skip
    PruneMagnitude(sparsity=0.8).apply(model, context(model))
    y = run(model, data(96))["y"]
    np.testing.assert_allclose(y.std(axis=(0, 2, 3)), 1, atol=0.05)


def test_only_norms_behind_pruned_layers_are_taken_anew():
    rng = np.random.default_rng(0)
    c = {f"{k}{i}": np.full(4, v, np.float32) for i in (1, 2) for k, v in (("s", 1), ("b", 0), ("m", 0), ("v", 2))}
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n,4,8,8] x, float[4,4,3,3] w, float[4] s1, float[4] b1, float[4] m1, float[4] v1, float[4] s2,
           float[4] b2, float[4] m2, float[4] v2) => (float[n,4,6,6] y) {
          a = BatchNormalization (x, s1, b1, m1, v1)
          c = Conv (a, w)
          y = BatchNormalization (c, s2, b2, m2, v2)
        }
        """,
        w=rng.standard_normal((4, 4, 3, 3)).astype(np.float32), **c,
    )  # fmt: skip
    x = {"x": rng.standard_normal((16, 4, 8, 8)).astype(np.float32)}
    PruneMagnitude().apply(model, Context(calibration=open_data([x], model)))
    first, _, last = model.graph
    assert [str(value.name) for value in first.inputs[3:]] == ["m1", "v1"]
    assert "reestimated" in str(last.inputs[3].name)


def test_same_seed_same_model():
    for options in ({"sparsity": 0.8}, {"sparsity": 0.8, "criterion": "random", "recover": False}):
        a, b = (pruned(**options)[0] for _ in range(2))
        for name in ("w1", "w2", "w3", "w4"):
            np.testing.assert_array_equal(array(a, name), array(b, name))


def test_recovery_that_is_asked_for_needs_data():
    for options in ({"recover": True}, {"criterion": "obs"}, {"scope": "sensitivity"}):
        with pytest.raises(DataError, match="calibration"):
            PruneMagnitude(**options).apply(net(), Context())


def test_grouped_convolutions_are_refitted_group_by_group():
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[n,4,8,8] x, float[6,2,3,3] w, float[6] b)
              => (float[n,6,6,6] y) { y = Conv <group = 2> (x, w, b) }"""
    arrays = {"w": rng.standard_normal((6, 2, 3, 3)).astype(np.float32), "b": np.ones(6, np.float32)}
    x = {"x": rng.standard_normal((32, 4, 4, 4)).repeat(2, 2).repeat(2, 3).astype(np.float32)}
    errors = []
    for recover in (False, True):
        model = from_text(text, **arrays)
        PruneMagnitude(sparsity=0.6, recover=recover).apply(model, Context(calibration=open_data([x], model)))
        errors.append(np.square(run(model, x)["y"] - run(from_text(text, **arrays), x)["y"]).mean())
    assert errors[1] < 0.8 * errors[0]
