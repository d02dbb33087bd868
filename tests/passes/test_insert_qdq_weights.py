"""How weights and biases are quantized: axes, groups, sharing, ranges that do not fit."""

import numpy as np
import pytest
from qdq import build, close, initializers, node_of, normal, producers, quantized, scale_of

from graphopt import oracle
from graphopt.graph import constant_array
from graphopt.testing import op_types


def test_conv_transpose_axis_and_groups():
    """Axis 1 counts output channels, within a group when grouped: then one scale (onnxruntime#19694)."""
    before = build(
        """
        g (float[n,4,5,5] x, float[4,3,2,2] w1, float[3] b1, float[4,3,2,2] w2)
          => (float[n,3,6,6] y, float[n,6,6,6] z) {
          y = ConvTranspose (x, w1, b1)
          z = ConvTranspose <group = 2> (x, w2)
        }
        """,
        w1=normal(4, 3, 2, 2) * np.float32([1, 10, 100])[:, None, None],
        b1=normal(3),
        w2=normal(4, 3, 2, 2),
    )
    feeds = {"x": normal(4, 4, 5, 5)}
    after, _ = quantized(before, feeds)
    plain, grouped = node_of(after, "ConvTranspose"), node_of(after, "ConvTranspose", 1)
    assert (scale_of(plain.inputs[1]).shape, plain.inputs[1].producer().attributes.get_int("axis")) == ((3,), 1)
    assert scale_of(grouped.inputs[1]).shape == ()
    want, got = oracle.run(before, feeds)["y"], oracle.run(after, feeds)["y"]
    for channel in range(3):  # each channel keeps its own precision
        assert np.abs(want - got)[:, channel].max() < 0.03 * np.ptp(want[:, channel])
    close(before, after, feeds)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_axis_follows_trans_b(transposed):
    """onnxruntime#24815"""
    w = normal(7, 5) * np.float32([1, 10, 100, 1000, 10000])
    before = build(
        f"g (float[n,7] x, float[{'5,7' if transposed else '7,5'}] w, float[5] b) => (float[n,5] y)"
        f"{{ y = Gemm <transB = {transposed}> (x, w, b) }}",
        w=w.T.copy() if transposed else w,
        b=normal(5),
    )
    feeds = {"x": normal(16, 7)}
    after, _ = quantized(before, feeds)
    weight = node_of(after, "Gemm").inputs[1].producer()
    assert (constant_array(weight.inputs[1]).shape, weight.attributes.get_int("axis")) == ((5,), 1 - transposed)
    want, got = oracle.run(before, feeds)["y"], oracle.run(after, feeds)["y"]
    assert (np.abs(want - got).max(axis=0) < 0.03 * np.ptp(want, axis=0)).all()


def test_gemm_bias_with_beta_stays_float():
    before = build(
        "g (float[n,7] x, float[7,5] w, float[5] b) => (float[n,5] y) { y = Gemm <beta = 2.0> (x, w, b) }",
        w=normal(7, 5),
        b=normal(5),
    )
    feeds = {"x": normal(16, 7)}
    after, _ = quantized(before, feeds)
    assert producers(node_of(after, "Gemm"))[2] is None
    close(before, after, feeds)


def test_matmul_output_axis_on_either_side_and_through_transpose():
    """aimet#3184"""
    before = build(
        """
        g (float[n,3,8] x, float[8,6] right, float[5,3] left, float[4,6] turned) => (float[n,5,4] y) {
          a = MatMul (x, right)
          b = MatMul (left, a)
          t = Transpose <perm = [1,0]> (turned)
          y = MatMul (b, t)
        }
        """,
        right=normal(8, 6),
        left=normal(5, 3),
        turned=normal(4, 6),
    )
    feeds = {"x": normal(4, 3, 8)}
    after, _ = quantized(before, feeds)
    axes = []
    for k, index in ((0, 1), (1, 0), (2, 1)):
        weight = node_of(after, "MatMul", k).inputs[index].producer()
        axes.append((constant_array(weight.inputs[1]).size, weight.attributes.get_int("axis")))
    assert axes == [(6, 1), (5, 0), (4, 1)]
    assert "Transpose" not in op_types(after)
    close(before, after, feeds, share=0.05)


def test_matmul_of_two_activations():
    before = build("g (float[n,3,4] a, float[n,4,5] b) => (float[n,3,5] y) { y = MatMul (a, b) }")
    feeds = {"a": normal(4, 3, 4), "b": normal(4, 4, 5)}
    after, _ = quantized(before, feeds)
    assert producers(node_of(after, "MatMul")) == ["DequantizeLinear"] * 2
    close(before, after, feeds)


def test_bias_beyond_int32_widens_the_scale_of_its_channel():
    """onnxruntime#22020; dead channels after BatchNorm folding have next to no weight and still a bias."""
    w = normal(3, 2, 1, 1)
    w[0] *= 1e-8
    before = build(
        "g (float[n,2,4,4] x, float[3,2,1,1] w, float[3] b) => (float[n,3,4,4] y) { y = Conv (x, w, b) }",
        w=w,
        b=np.float32([4, 0, -1]),
    )
    feeds = {"x": normal(4, 2, 4, 4)}
    after, report = quantized(before, feeds)
    conv = node_of(after, "Conv")
    assert producers(conv) == ["DequantizeLinear"] * 3
    stored = constant_array(conv.inputs[2].producer().inputs[0])
    assert 2**29 < abs(int(stored[0])) < 2**31 - 1
    np.testing.assert_allclose(scale_of(conv.inputs[1])[1:], np.abs(w[1:]).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    assert not report.skipped
    close(before, after, feeds)


def test_bias_beyond_int32_stays_float_where_one_scale_serves_all_channels():
    before = build(
        "g (float[n,4,4,4] x, float[4,1,1,1] w, float[2] b) => (float[n,2,4,4] y)"
        "{ y = ConvTranspose <group = 2> (x, w, b) }",
        w=normal(4, 1, 1, 1, scale=1e-6),
        b=np.float32([1e5, 0]),
    )
    feeds = {"x": normal(4, 4, 4, 4)}
    after, report = quantized(before, feeds)
    assert producers(node_of(after, "ConvTranspose")) == ["DequantizeLinear", "DequantizeLinear", None]
    assert "would clip" in report.skipped[0].reason
    assert report.facts["quantized"] == report.facts["weighted"] == 1
    close(before, after, feeds)


def test_gemm_bias_of_one_element_stays_float():
    before = build(
        "g (float[n,7] x, float[7,5] w, float[1] b) => (float[n,5] y) { y = Gemm (x, w, b) }",
        w=normal(7, 5),
        b=normal(1),
    )
    feeds = {"x": normal(16, 7)}
    after, _ = quantized(before, feeds)
    assert producers(node_of(after, "Gemm"))[2] is None
    close(before, after, feeds)


def test_zero_channel_and_zero_tensor_get_scale_one():
    """onnxruntime#12470"""
    w = normal(3, 2, 1, 1)
    w[1] = 0
    before = build(
        """
        g (float[n,2,4,4] x, float[3,2,1,1] w, float[3] b, float[3,3,1,1] v) => (float[n,3,4,4] y) {
          a = Conv (x, w)
          r = Clip (a, lo, hi)
          y = Conv (r, v, b)
        }
        """.replace("float[n,2,4,4] x,", "float[n,2,4,4] x, float lo, float hi,"),
        w=w,
        b=normal(3),
        v=normal(3, 3, 1, 1),
        lo=np.float32(0),
        hi=np.float32(0),
    )
    feeds = {"x": normal(4, 2, 4, 4)}
    after, _ = quantized(before, feeds)
    assert scale_of(node_of(after, "Conv").inputs[1])[1] == 1
    assert scale_of(node_of(after, "Conv", 1).inputs[0]) == 1
    got = oracle.run(after, feeds)["y"]
    np.testing.assert_allclose(got, oracle.run(before, feeds)["y"], rtol=1e-2, atol=1e-2)


def test_shared_weight_and_shared_bias():
    """One int8 weight serves both; the bias is int32 at each node's own scale (onnxruntime#24705)."""
    before = build(
        """
        g (float[n,4,4,4] x, float[4,4,1,1] w, float[4] b) => (float[n,4,4,4] y) {
          a = Conv (x, w, b)
          y = Conv (a, w, b)
        }
        """,
        w=normal(4, 4, 1, 1, scale=3),
        b=normal(4),
    )
    feeds = {"x": normal(4, 4, 4, 4)}
    after, _ = quantized(before, feeds)
    first, second = node_of(after, "Conv"), node_of(after, "Conv", 1)
    assert first.inputs[1] is second.inputs[1]
    a, b = (constant_array(n.inputs[2].producer().inputs[0]) for n in (first, second))
    assert not np.array_equal(a, b)
    assert sum(t.const_value.numpy().dtype == np.int8 and t.const_value.size == 16 for t in initializers(after)) == 1
    close(before, after, feeds, share=0.05)


def test_bias_and_weight_that_are_computed():
    before = build(
        """
        g (float[n,2,4,4] x, float[3,2,1,1] v, float[3] c, float[3,2,1,1] w) => (float[n,3,4,4] y, float[n,3,4,4] z) {
          y = Conv (x, w, c)
          z = Conv (x, v)
        }
        """,
        w=normal(3, 2, 1, 1),
    )
    after, report = quantized(before)
    assert producers(node_of(after, "Conv")) == ["DequantizeLinear", "DequantizeLinear", None]
    assert producers(node_of(after, "Conv", 1)) == [None, None]
    assert [s.reason for s in report.skipped] == ["its weight is computed at run time"]
