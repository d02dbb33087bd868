"""Where Q/DQ pairs stand and what they hold; one test for each trap that others fell into."""

import collections
import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import models, oracle
from graphopt.base import Context
from graphopt.data import Batches, open_data
from graphopt.errors import DataError, PassError, UsageError
from graphopt.graph import constant_array, load
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.passes.quant.calibrate import calibrate
from graphopt.pipeline.registry import make_target, parse_pipeline
from graphopt.testing import apply, from_text, op_types

RNG = np.random.default_rng(0)
HEAD = '<ir_version: 8, opset_import: ["": 17]> '


@pytest.fixture(autouse=True)
def _same_numbers_whatever_ran_before(monkeypatch):
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


def normal(*shape, scale=1.0):
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


def build(body, **weights):
    return from_text(HEAD + body, **weights)


def quantized(model, feeds=None, **options):
    """The quantized model and the report, calibrated on `feeds` or on normal random input."""
    if feeds is None:
        feeds = {v.name: normal(*[d if isinstance(d, int) else 4 for d in v.shape]) for v in model.graph.inputs}
    return apply(InsertQdq(**options), model, Context(calibration=Batches(lambda: [feeds])))


def close(before, after, feeds, share=0.03):
    """Outputs agree within `share` of their range, and onnxruntime's optimiser agrees as well."""
    want = oracle.run(before, feeds)
    for optimised in (False, True):
        got = oracle.Session(after, optimised=optimised).run(feeds)
        for name, array in want.items():
            assert got[name].dtype == array.dtype
            assert np.abs(got[name] - array).max() <= share * np.ptp(array), name


def node_of(model, op_type, index=0):
    return [n for n in model.graph if n.op_type == op_type][index]


def producers(node):
    """What feeds a node: operator of each input's producer, None for inputs and initializers."""
    return [p.op_type if (p := v.producer()) is not None else None for v in node.inputs]


def scale_of(value):
    """The scale behind a value that a DequantizeLinear yields."""
    return constant_array(value.producer().inputs[1])


CONV_RELU_CONV = """
g (float[n,3,8,8] x, float[6,3,3,3] w1, float[6] b1, float[4,6,1,1] w2) => (float[n,4,6,6] y) {
  a = Conv (x, w1, b1)
  r = Relu (a)
  y = Conv (r, w2)
}
"""


def conv_relu_conv():
    return build(CONV_RELU_CONV, w1=normal(6, 3, 3, 3), b1=normal(6), w2=normal(4, 6, 1, 1))


def test_conv_relu_conv():
    before = conv_relu_conv()
    feeds = {"x": normal(4, 3, 8, 8)}
    after, report = quantized(before, feeds)
    first, second = node_of(after, "Conv"), node_of(after, "Conv", 1)
    assert producers(first) == ["DequantizeLinear"] * 3
    assert producers(second) == ["DequantizeLinear"] * 2
    assert producers(node_of(after, "Relu")) == ["Conv"]  # no pair between Conv and the Relu that alone reads it
    assert constant_array(first.inputs[1].producer().inputs[0]).dtype == np.int8
    assert scale_of(first.inputs[1]).shape == (6,)
    bias = first.inputs[2].producer()
    assert constant_array(bias.inputs[0]).dtype == np.int32
    np.testing.assert_allclose(
        constant_array(bias.inputs[1]), scale_of(first.inputs[0]) * scale_of(first.inputs[1]), rtol=1e-6
    )
    assert constant_array(second.inputs[0].producer().inputs[2]) == 0  # after a Relu, zero is the lowest
    assert {str(v.dtype) for v in after.graph.outputs} == {"FLOAT"}
    assert "w1" not in after.graph.initializers  # the float weights are gone
    assert report.facts["quantized"] == report.facts["weighted"] == 2
    close(before, after, feeds)


@pytest.mark.parametrize("observer", ["minmax", "moving-average", "percentile", "mse"])  # entropy clips the rare
@pytest.mark.parametrize("more", [{}, {"activations": "int8"}, {"weight_bits": 7}, {"power_of_two": True}], ids=str)
def test_options(observer, more):
    before = conv_relu_conv()
    feeds = {"x": normal(4, 3, 8, 8)}
    after, _ = quantized(before, feeds, observer=observer, **more)
    close(before, after, feeds, share=0.06)
    pair = node_of(after, "QuantizeLinear")
    assert constant_array(pair.inputs[2]).dtype == np.dtype(more.get("activations", "uint8"))
    weights = constant_array(node_of(after, "Conv").inputs[1].producer().inputs[0])
    assert np.abs(weights).max() == (63 if "weight_bits" in more else 127) or "power_of_two" in more
    if "power_of_two" in more:
        mantissa, _ = np.frexp(scale_of(node_of(after, "Conv").inputs[1]))
        assert (mantissa == 0.5).all()


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


def initializers(model):
    return list(model.graph.initializers.values())


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


RESIDUAL = """
g (float[n,4,6,6] x, float[4,4,1,1] w1, float[4,4,1,1] w2, float[4,4,1,1] w3) => (float[n,4,6,6] y) {
  a = Conv (x, w1)
  r = Relu (a)
  b = Conv (r, w2)
  s = Add (b, r)
  q = Relu (s)
  y = Conv (q, w3)
}
"""


def test_residual_add_has_both_inputs_quantized():
    before = build(RESIDUAL, **{f"w{k}": normal(4, 4, 1, 1) for k in (1, 2, 3)})
    feeds = {"x": normal(4, 4, 6, 6)}
    after, _ = quantized(before, feeds)
    add = node_of(after, "Add")
    assert producers(add) == ["DequantizeLinear"] * 2
    assert scale_of(add.inputs[0]) != scale_of(add.inputs[1])
    assert add.inputs[1] is node_of(after, "Conv", 1).inputs[0]  # r is quantized once, for both readers
    assert producers(node_of(after, "Relu", 1)) == ["Add"]
    close(before, after, feeds, share=0.06)


def test_a_sum_of_two_is_an_addition():
    """Some exporters write residual additions as Sum."""
    before = build(RESIDUAL.replace("Add", "Sum"), **{f"w{k}": normal(4, 4, 1, 1) for k in (1, 2, 3)})
    feeds = {"x": normal(4, 4, 6, 6)}
    after, _ = quantized(before, feeds)
    assert producers(node_of(after, "Sum")) == ["DequantizeLinear"] * 2
    assert producers(node_of(after, "Relu", 1)) == ["Sum"]
    close(before, after, feeds, share=0.06)


@pytest.mark.parametrize(
    ("target", "asked", "bits"),
    [
        ("llvm{mcpu=x86-64-v3}", None, 7), ("llvm{mcpu=cascadelake}", None, 8), ("llvm{mcpu=neoverse-n1}", None, 8),
        ("llvm{mcpu=x86-64-v3}", 8, 8), (None, None, 8),
    ],
)  # fmt: skip
def test_weights_have_the_bits_that_the_target_is_fastest_with(target, asked, bits):
    """x86 without VNNI adds two products of 8 bits in 16, which only 7-bit weights never saturate."""
    context = Context(
        calibration=Batches(lambda: [{"x": normal(4, 3, 8, 8)}]), target=None if target is None else make_target(target)
    )
    after, report = apply(InsertQdq(weight_bits=asked), conv_relu_conv(), context)
    weights = constant_array(node_of(after, "Conv").inputs[1].producer().inputs[0])
    assert np.abs(weights).max() == 2 ** (bits - 1) - 1
    assert report.facts["weight_bits"] == bits
    assert all(change.action.endswith("7-bit weights") == (bits == 7) for change in report.changes)


def test_values_that_only_move_keep_their_scale():
    """tensorflow#46754"""
    before = build(
        """
        g (float[n,3,8,8] x, float[4,3,1,1] w, int64[2] s, float[64,5] v) => (float[n,5] y) {
          a = Conv (x, w)
          p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a)
          t = Transpose <perm = [0,2,3,1]> (p)
          f = Reshape (t, s)
          y = MatMul (f, v)
        }
        """,
        w=normal(4, 3, 1, 1),
        s=np.array([-1, 64]),
        v=normal(64, 5),
    )
    feeds = {"x": normal(4, 3, 8, 8)}
    after, _ = quantized(before, feeds)
    chain = [node_of(after, op) for op in ("MaxPool", "Transpose", "Reshape", "MatMul")]
    assert all(producers(node)[0] == "DequantizeLinear" for node in chain)
    scales = {node.inputs[0].producer().inputs[1].name for node in chain}
    assert len(scales) == 1
    close(before, after, feeds)


CONCAT = """
g (float[n,2,6,6] x, float[2,2,1,1] w1, float[2,2,1,1] w2, float[3,4,1,1] w3) => (float[n,3,6,6] y) {
  a = Conv (x, w1)
  b = Conv (x, w2)
  c = Concat <axis = 1> (a, b)
  y = Conv (c, w3)
}
"""


@pytest.mark.parametrize(("ratio", "integers"), [(8, True), (1000, False)])
def test_concat_does_not_kill_a_small_branch(ratio, integers):
    """Branches keep their scales; where the joint one would drown the smaller, the reader stays float (nncf#1778)."""
    w3 = normal(3, 4, 1, 1)
    w3[:, :2] *= ratio  # the small branch matters as much as the large one
    before = build(CONCAT, w1=normal(2, 2, 1, 1), w2=ratio * normal(2, 2, 1, 1), w3=w3)
    feeds = {"x": normal(4, 2, 6, 6)}
    after, report = quantized(before, feeds)
    concat, reader = node_of(after, "Concat"), node_of(after, "Conv", 2)
    if integers:
        assert producers(concat) == ["DequantizeLinear"] * 2
        assert scale_of(concat.inputs[0]) != scale_of(concat.inputs[1])
    else:
        assert producers(reader) == ["Concat", None]
        assert "the smaller would be lost" in report.skipped[0].reason
    close(before, after, feeds, share=0.08)


def test_relu_stays_before_symmetric_int8_and_a_tight_clip_stays():
    """onnxruntime#9425, #10434"""
    before = build(
        """
        g (float[n,3,6,6] x, float[3,3,1,1] w1, float[3,3,1,1] w2, float[3,3,1,1] w3, float lo, float hi)
          => (float[n,3,6,6] y) {
          a = Conv (x, w1)
          r = Relu (a)
          b = Conv (r, w2)
          c = Clip (b, lo, hi)
          y = Conv (c, w3)
        }
        """,
        **{f"w{k}": normal(3, 3, 1, 1) for k in (1, 2, 3)},
        lo=np.float32(-0.1),
        hi=np.float32(0.2),
    )
    feeds = {"x": normal(4, 3, 6, 6)}
    after, _ = quantized(before, feeds, activations="int8", observer="minmax")
    assert {"Relu", "Clip"} < set(op_types(after))
    close(before, after, feeds, share=0.12)


def test_a_relu_beside_another_reader_is_quantized_on_both_sides():
    before = build(
        """
        g (float[n,3,6,6] x, float[3,3,1,1] w1, float[3,3,1,1] w2, float[3,3,1,1] w3) => (float[n,3,6,6] y) {
          a = Conv (x, w1)
          r = Relu (a)
          b = Conv (r, w2)
          c = Conv (a, w3)
          y = Add (b, c)
        }
        """,
        **{f"w{k}": normal(3, 3, 1, 1) for k in (1, 2, 3)},
    )
    feeds = {"x": normal(4, 3, 6, 6)}
    after, _ = quantized(before, feeds)
    assert producers(node_of(after, "Relu")) == ["DequantizeLinear"]
    assert producers(node_of(after, "Add")) == ["Conv", "Conv"]  # its output is float, and so are its inputs
    close(before, after, feeds, share=0.06)


def test_softmax_reaches_one():
    """onnxruntime#29727"""
    before = build(
        "g (float[n,8] x, float[8,4] w) => (float[n,4] y) { s = Softmax (x)\n y = MatMul (s, w) }", w=normal(8, 4)
    )
    x = normal(6, 8)
    x[0, 0] = 100.0
    after, _ = quantized(before, {"x": x})
    pair = node_of(after, "QuantizeLinear")
    top = oracle.run(after, {"x": x}, [node_of(after, "MatMul").inputs[0].name]).popitem()[1]
    assert top.max() == 1
    assert producers(pair) == ["Softmax", None, None]


def test_a_branch_keeps_the_float_weight_it_captures():
    """onnxruntime#8488: a weight of the outer graph read inside an If."""
    before = build(
        """
        g (float[2,4] x, bool c, float[4,4] w) => (float[2,4] y) {
          a = MatMul (x, w)
          b = MatMul (a, w)
          h = If (c) <
            then_branch = t () => (float[2,4] p) { p = MatMul (a, w) },
            else_branch = e () => (float[2,4] q) { q = Add (a, x) }
          >
          y = Add (b, h)
        }
        """,
        w=normal(4, 4),
    )
    feeds = {"x": normal(2, 4), "c": np.array(True)}
    after, report = quantized(before, feeds)
    body = node_of(after, "If").attributes["then_branch"].as_graph().node(0)
    assert producers(body)[0] == "DequantizeLinear"  # the integers are all that is kept of what `a` was
    assert after.graph.initializers["w"].dtype == ir.DataType.FLOAT
    assert [s.reason for s in report.skipped] == ["it is inside a subgraph"]
    close(before, after, feeds, share=0.05)


def test_graph_outputs_stay_float_also_in_the_middle_and_integers_are_left():
    """onnxruntime#3329"""
    before = build(
        """
        g (float[n,4] x, int64[k] ids, float[4,6] w1, float[6,3] w2, int64[9] table)
          => (float[n,6] h, float[n,3] y, int64[k] t) {
          h = MatMul (x, w1)
          y = MatMul (h, w2)
          t = Gather (table, ids)
        }
        """,
        w1=normal(4, 6),
        w2=normal(6, 3),
        table=np.arange(9),
    )
    feeds = {"x": normal(5, 4), "ids": np.array([1, 8])}
    after, _ = quantized(before, feeds)
    assert node_of(after, "MatMul").outputs[0] is after.graph.outputs[0]
    assert producers(node_of(after, "MatMul", 1)) == ["DequantizeLinear"] * 2
    assert producers(node_of(after, "Gather")) == [None, None]
    close(before, after, feeds)


def test_a_float_reader_of_a_float_value_keeps_the_float():
    """LayerNormalization feeds both a MatMul and the residual Add: only the MatMul pays for quantization."""
    before = build(
        """
        g (float[n,8] x, float[8] g1, float[8,8] w) => (float[n,8] y) {
          l = LayerNormalization (x, g1)
          m = MatMul (l, w)
          y = Add (m, l)
        }
        """,
        g1=np.ones(8, np.float32),
        w=normal(8, 8),
    )
    after, _ = quantized(before)
    assert producers(node_of(after, "Add")) == ["MatMul", "LayerNormalization"]


def test_add_of_a_constant_stays_float_between_matmul_and_pair():
    before = build(
        """
        g (float[n,8] x, float[8,8] w1, float[8] b, float[8,3] w2) => (float[n,3] y) {
          m = MatMul (x, w1)
          a = Add (m, b)
          r = Relu (a)
          y = MatMul (r, w2)
        }
        """,
        w1=normal(8, 8),
        b=normal(8),
        w2=normal(8, 3),
    )
    after, _ = quantized(before)
    assert producers(node_of(after, "Add")) == ["MatMul", None]
    assert producers(node_of(after, "Relu")) == ["Add"]


def test_left_alone_with_a_reason():
    before = build(
        """
        g (float[n,4] x, float16[n,4] h, float[4,4] w1, float[4,4] bad, float16[4,4] w2, float[16] flat, int64[2] s)
          => (float[n,4] a, float[n,4] b, float16[n,4] c, float[n,4] d, float[n,4] e) {
          a = MatMul (x, w1)
          b = MatMul (x, bad)
          c = MatMul (h, w2)
          m = Reshape (flat, s)
          d = MatMul (x, m)
          z = Sub (x, x)
          i = Div (z, z)
          e = MatMul (i, w1)
        }
        """,
        w1=normal(4, 4),
        bad=np.full((4, 4), np.inf, np.float32),
        w2=np.ones((4, 4), np.float16),
        flat=normal(16),
        s=np.array([4, 4]),
    )
    first = before.graph.node(0).name
    feeds = {"x": normal(2, 4), "h": np.ones((2, 4), np.float16)}
    after, report = quantized(before, feeds, exclude=(first,))
    assert sorted(s.reason for s in report.skipped) == [
        "'i' is not finite on the calibration data",
        "excluded",
        "it computes in FLOAT16; float32 is quantized",
        "its weight 'bad' is empty or not finite",
        "its weight 'flat' comes through a Reshape: run fold-constants first",
    ]
    assert "QuantizeLinear" not in op_types(after)
    assert report.facts["quantized"] == 0


def test_again_changes_nothing():
    once, _ = quantized(conv_relu_conv())
    twice, report = quantized(once)
    assert op_types(twice) == op_types(once)
    assert {s.reason for s in report.skipped} == {"it is quantized already"}


def test_same_data_same_model_in_any_batches(tmp_path):
    before = conv_relu_conv()
    x = normal(20, 3, 8, 8)
    files = []
    for k, size in enumerate((20, 3)):
        data = open_data({"x": x}, before, batch_size=size)
        after, _ = apply(InsertQdq(observer="mse"), before, Context(calibration=data))
        ir.save(after, tmp_path / f"{k}.onnx")
        files.append((tmp_path / f"{k}.onnx").read_bytes())
    assert files[0] == files[1]


def test_provenance_of_the_new_nodes():
    from graphopt.graph import sources

    before = conv_relu_conv()
    names = {node.name for node in before.graph}
    after, _ = quantized(before)
    assert all(sources(node) and set(sources(node)) <= names for node in after.graph)
    pair = [n for n in node_of(after, "Relu").outputs[0].consumers() if n.op_type == "QuantizeLinear"]
    assert sources(pair[0]) == [node_of(before, "Relu").name]


def test_onnxruntime_fuses_what_is_placed(tmp_path):
    """The placement is what integer kernels want: after fusion no float Conv, Add, pool or Gemm is left."""
    import onnx
    import onnxruntime as ort

    after = quantize_reference("digits")[1]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    ort.InferenceSession(ir.to_proto(after).SerializeToString(), options, providers=["CPUExecutionProvider"])
    ops = collections.Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert (ops["QLinearConv"], ops["QLinearAdd"], ops["QGemm"]) == (5, 1, 1)
    assert not {"Conv", "Add", "Relu", "Gemm"} & set(ops)


def quantize_reference(name):
    from graphopt.pipeline import run

    model = models.get(name)
    before = load(model.path())
    context = Context(calibration=open_data(model.calibration, before))
    return model, run(before, parse_pipeline("fold-batch-norm,insert-qdq"), context).model


def held_out(name):
    """The metric of the quantized model on held-out labels, and the float baseline."""
    model, after = quantize_reference(name)
    evaluation = model.evaluation()
    session = oracle.Session(after)
    return evaluation.score(session.run(feeds) for feeds in evaluation.feeds()), model.baseline


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_accuracy_on_held_out_labels(name):
    metric, baseline = held_out(name)
    assert metric >= baseline - 0.005


@pytest.mark.slow
@pytest.mark.parametrize("name", ["angle-classifier", "ocr-recogniser", "magika", "crepe-tiny", "minilm-l3"])
def test_accuracy_of_fetched_models(name):
    """At most half a point is lost."""
    metric, baseline = held_out(name)
    assert metric >= baseline - 0.0051


def test_weights_take_a_quarter_of_the_bytes():
    model, after = quantize_reference("mnist")
    before = sum(v.const_value.nbytes for v in initializers(load(model.path())))
    assert sum(v.const_value.nbytes for v in initializers(after)) < 0.3 * before


def test_calibration_memory_does_not_grow_with_the_samples():
    model = conv_relu_conv()
    peaks = []
    for count in (40, 800):
        stream = Batches(lambda count=count: ({"x": np.ones((4, 3, 8, 8), np.float32)} for _ in range(count // 4)))
        tracemalloc.start()
        calibrate(model, [model.graph.inputs[0], node_of(model, "Relu").outputs[0]], stream)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_refusals():
    model = conv_relu_conv()
    with pytest.raises(DataError, match="insert-qdq needs calibration data"):
        apply(InsertQdq(), model)
    with pytest.raises(UsageError, match="observer"):
        parse_pipeline("insert-qdq{observer=median}")
    with pytest.raises(UsageError, match="weight_bits"):
        parse_pipeline("insert-qdq{weight_bits=9}")
    model.graph.opset_imports[""] = 12
    with pytest.raises(PassError, match="opset 13"):
        InsertQdq().apply(model, Context(calibration=Batches(list)))
