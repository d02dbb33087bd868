"""Masks by magnitude: exact counts, ties, shared weights, N:M, and what is left alone."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.errors import UsageError
from graphopt.passes.magnitude import smallest, smallest_of_groups
from graphopt.passes.prune_magnitude import PruneMagnitude
from graphopt.pipeline.registry import parse_pipeline
from graphopt.testing import apply, assert_equivalent, from_text

RNG = np.random.default_rng(0)

CONV_GEMM = """
<ir_version: 8, opset_import: ["": 17]>
g (float[n,4,6,6] x, float[8,4,3,3] w1, float[8] b1, float[8] mean, float[8] var, float[10,128] w2, float[10] b2)
  => (float[n,10] y) {
  c = Conv <pads = [0,0,0,0]> (x, w1, b1)
  r = BatchNormalization (c, b1, b1, mean, var)
  f = Flatten (r)
  y = Gemm <transB = 1> (f, w2, b2)
}
"""


def conv_gemm():
    weights = {
        "w1": RNG.standard_normal((8, 4, 3, 3)).astype(np.float32),
        "w2": 0.01 * RNG.standard_normal((10, 128)).astype(np.float32),
        "b1": np.full(8, 0.001, np.float32),
        "b2": np.zeros(10, np.float32),
        "mean": np.zeros(8, np.float32),
        "var": np.ones(8, np.float32),
    }
    return from_text(CONV_GEMM, **weights)


def array(model, name):
    return model.graph.initializers[name].const_value.numpy()


def zeros(model, name):
    return int((array(model, name) == 0).sum())


finite = hnp.arrays(st.sampled_from([np.float32, np.float16]), st.integers(1, 60), elements=st.floats(-4, 4, width=16))


@given(st.lists(finite, min_size=1, max_size=4), st.floats(0, 0.999))
def test_smallest_chooses_exactly_and_only_the_smallest(arrays, sparsity):
    masks = smallest(arrays, sparsity)
    total = sum(a.size for a in arrays)
    assert sum(int(m.sum()) for m in masks) == min(round(sparsity * total), total - len(arrays))
    assert all(not m.all() for m in masks)
    kept_largest = [np.sort(np.abs(a[~m]))[:-1] for a, m in zip(arrays, masks, strict=True)]  # the largest always stays
    kept, gone = (
        np.concatenate(kept_largest),
        np.concatenate([np.abs(a[m]) for a, m in zip(arrays, masks, strict=True)]),
    )
    if kept.size and gone.size:
        assert gone.max() <= kept.min()


def test_equal_magnitudes_go_evenly():
    (mask,) = smallest([np.where(np.arange(101) % 2, 1.0, -1.0).astype(np.float32)], 0.5)
    assert mask.sum() == 50
    assert all(mask[k : k + 10].sum() >= 4 for k in range(0, 100, 10))


@given(
    hnp.arrays(np.float32, (3, 8, 2), elements=st.floats(-4, 4, width=16)), st.sampled_from([(1, 2), (2, 4), (1, 4)])
)
def test_groups_keep_the_n_largest_of_m(weights, pattern):
    n, m = pattern
    mask = smallest_of_groups(weights, 1, n, m)
    for i in range(3):
        for k in range(2):
            for start in range(0, 8, m):
                magnitudes = np.abs(weights[i, start : start + m, k])
                gone = mask[i, start : start + m, k]
                assert gone.sum() == m - n
                assert magnitudes[gone].max() <= magnitudes[~gone].min()


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.9, 0.99, 0.999])
def test_per_layer(sparsity):
    before = conv_gemm()
    after, report = apply(PruneMagnitude(sparsity=sparsity), before)
    for name, size in (("w1", 288), ("w2", 1280)):
        expected = min(round(sparsity * size), size - 1)
        assert zeros(after, name) == expected
        assert report.facts["sparsity"][name] == expected / size
        kept = array(after, name) != 0
        np.testing.assert_array_equal(array(after, name)[kept], array(before, name)[kept])
    assert zeros(before, "w1") == 0
    for name in ("b1", "b2", "mean", "var"):
        np.testing.assert_array_equal(array(after, name), array(before, name))


def test_global_uses_one_threshold_and_empties_no_layer():
    after, report = apply(PruneMagnitude(sparsity=0.85, scope="global"), conv_gemm())
    assert report.facts["zeros"] == round(0.85 * 1568)
    assert zeros(after, "w2") == 1279  # all far smaller than w1, and yet one is kept
    assert zeros(after, "w1") == round(0.85 * 1568) - 1279


def test_two_of_four_along_input_channels():
    after, report = apply(PruneMagnitude(pattern="2:4"), conv_gemm())
    w1 = array(after, "w1") != 0
    assert (w1.sum(axis=1) == 2).all()  # 4 input channels on axis 1
    assert ((array(after, "w2") != 0).reshape(10, 32, 4).sum(axis=2) == 2).all()
    assert report.facts["sparsity"] == {"w1": 0.5, "w2": 0.5}


def test_groups_follow_each_operators_input_axis():
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n,8] x, float[1,4,5,5] i, float[8,3] w1, float[3,8] w2, float[4,3,2,2] w3, float[3,3] w4)
          => (float[n,3] y, float[n,3] z, float[1,3,6,6] t, float[n,3] u) {
          y = MatMul (x, w1)
          w2t = Transpose <perm = [1,0]> (w2)
          z = MatMul (x, w2t)
          t = ConvTranspose (i, w3)
          u = Gemm (y, w4)
        }
        """,
        w1=RNG.standard_normal((8, 3)).astype(np.float32),
        w2=RNG.standard_normal((3, 8)).astype(np.float32),
        w3=RNG.standard_normal((4, 3, 2, 2)).astype(np.float32),
        w4=RNG.standard_normal((3, 3)).astype(np.float32),
    )
    after, report = apply(PruneMagnitude(pattern="1:4"), model)
    assert ((array(after, "w1") != 0).reshape(2, 4, 3).sum(axis=1) == 1).all()
    assert ((array(after, "w2") != 0).reshape(3, 2, 4).sum(axis=2) == 1).all()
    assert ((array(after, "w3") != 0).sum(axis=0) == 1).all()
    assert zeros(after, "w4") == 0
    assert [s.reason for s in report.skipped] == ["its weight 'w4' has 3 input channels, no multiple of 4"]


def test_tied_embedding_is_masked_once_and_seen_by_both():
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (int64[n] ids, float[20,8] w) => (float[n,20] y) {
          e = Gather (w, ids)
          wt = Transpose <perm = [1,0]> (w)
          y = MatMul (e, wt)
        }
        """,
        w=RNG.standard_normal((20, 8)).astype(np.float32),
    )
    after, report = apply(PruneMagnitude(sparsity=0.5), model)
    assert zeros(after, "w") == 80
    assert (report.facts["zeros"], report.facts["weights"]) == (80, 160)
    masked = array(after, "w")
    ids = np.array([3, 7, 7])
    from graphopt import oracle

    got = oracle.run(after, {"ids": ids})["y"]
    np.testing.assert_allclose(got, masked[ids] @ masked.T, rtol=1e-5, atol=1e-6)


TWO_CONVS = """
<ir_version: 8, opset_import: ["": 17]>
g (float[1,4,6,6] x, float[4,4,3,3] w) => (float[1,4,2,2] y) {
  a = Conv (x, w)
  y = Conv (a, w)
}
"""


def test_shared_weight_counts_once_and_exclusion_covers_all_its_users():
    model = from_text(TWO_CONVS, w=RNG.standard_normal((4, 4, 3, 3)).astype(np.float32))
    after, report = apply(PruneMagnitude(sparsity=0.25), model)
    assert zeros(after, "w") == 36
    assert len(report.changes) == 2
    first = model.graph.node(0).name
    after, report = apply(PruneMagnitude(exclude=(first,)), model)
    assert zeros(after, "w") == 0
    assert "shared" in report.skipped[1].reason


def test_weight_in_a_constant_node_and_inside_a_branch():
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[1,4] x, bool c, float[4,4] w) => (float[1,4] y) {
          k = Constant <value = float[4,4] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> ()
          h = MatMul (x, k)
          y = If (c) <
            then_branch = t () => (float[1,4] p) { p = MatMul (h, w) },
            else_branch = e () => (float[1,4] q) { q = Identity (h) }
          >
        }
        """,
        w=RNG.standard_normal((4, 4)).astype(np.float32),
    )
    after, _ = apply(PruneMagnitude(sparsity=0.5), model)
    constant = next(n for n in after.graph if n.op_type == "Constant")
    np.testing.assert_array_equal(
        constant.attributes["value"].as_tensor().numpy().ravel(), [0] * 8 + list(range(9, 17))
    )
    assert zeros(after, "w") == 8
    x = np.ones((1, 4), np.float32)
    from graphopt import oracle

    got = oracle.run(after, {"x": x, "c": np.array(True)})["y"]
    np.testing.assert_allclose(got, np.array([[22, 24, 26, 28]]) @ array(after, "w"), rtol=1e-5, atol=1e-5)


def test_include_exclude_by_operator_and_text_form():
    (by_text,) = parse_pipeline("prune-magnitude{sparsity=0.75,exclude=[Gemm]}")
    after, report = apply(by_text, conv_gemm())
    assert (zeros(after, "w1"), zeros(after, "w2")) == (216, 0)
    assert [s.reason for s in report.skipped] == ["excluded"]
    after, _ = apply(PruneMagnitude(include=("Gemm",)), conv_gemm())
    assert (zeros(after, "w1"), zeros(after, "w2")) == (0, 640)


def test_again_changes_nothing():
    once, _ = apply(PruneMagnitude(sparsity=0.6), conv_gemm())
    twice, _ = apply(PruneMagnitude(sparsity=0.6), once)
    np.testing.assert_array_equal(array(once, "w1"), array(twice, "w1"))
    assert_equivalent(once, twice, rtol=0)


def test_weights_left_alone():
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[1,4] x, float[4,4] m, float[4,4] bad, int8[4,4] q, float s)
          => (float[1,4] y, float[1,4] z, float[1,4] d) {
          y = MatMul (x, m)
          z = MatMul (x, bad)
          w = DequantizeLinear (q, s)
          d = MatMul (x, w)
        }
        """,
        bad=np.full((4, 4), np.nan, np.float32),
        q=np.ones((4, 4), np.int8),
        s=np.float32(1),
    )
    _, report = apply(PruneMagnitude(), model)
    assert sorted(s.reason for s in report.skipped) == [
        "its weight 'bad' is not finite",
        "its weight is not a float constant",
        "its weight is not a float constant",
    ]
    assert not report.changes


def test_half_precision_keeps_its_type():
    model = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float16[1,4] x, float16[4,4] w) => (float16[1,4] y) { y = MatMul (x, w) }
        """,
        w=RNG.standard_normal((4, 4)).astype(np.float16),
    )
    after, _ = apply(PruneMagnitude(), model)
    assert after.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    assert zeros(after, "w") == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune-magnitude{sparsity=1}", "sparsity"),
        ("prune-magnitude{sparsity=-0.1}", "sparsity"),
        ("prune-magnitude{pattern=4:2}", "N:M"),
        ("prune-magnitude{pattern=rows}", "N:M"),
        ("prune-magnitude{pattern=2:4,sparsity=0.5}", "fixes"),
        ("prune-magnitude{scope=model}", "scope"),
    ],
)
def test_bad_options(text, message):
    with pytest.raises(UsageError, match=message):
        parse_pipeline(text)


def test_weights_that_nobody_reads_count_for_nothing():
    """Found by fuzzing: the pass met weights of dead nodes, and lost them before it had counted them."""
    weights = {"w": np.ones((4, 4), np.float32), "v": np.ones((4, 4), np.float32)}
    model = from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,4] x, float[4,4] w, float[4,4] v) => (float[N,4] y) { y = MatMul(x, w) d = MatMul(x, v) }""",
        **weights,
    )
    _, report = apply(PruneMagnitude(sparsity=0.5), model)
    assert (report.facts["zeros"], report.facts["weights"]) == (8, 16)
