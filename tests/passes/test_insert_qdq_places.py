"""Where Q/DQ pairs stand and where not, and which share a scale; one test for each trap that others fell into."""

import numpy as np
import onnx_ir as ir
import pytest
from qdq import RESIDUAL, build, close, node_of, normal, producers, quantized, scale_of

from graphopt import oracle
from graphopt.testing import op_types


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


def test_an_excluded_sum_stays_float_and_what_follows_is_quantized_once():
    """Residual streams lose most of what 8 bits cost: kept in float they cost an integer kernel nothing."""
    before = build(RESIDUAL, **{f"w{k}": normal(4, 4, 1, 1) for k in (1, 2, 3)})
    feeds = {"x": normal(4, 4, 6, 6)}
    after, _ = quantized(before, feeds, exclude=("Add",))
    add = node_of(after, "Add")
    assert "DequantizeLinear" not in producers(add)[:1]  # the branch's result
    assert producers(node_of(after, "Relu", 1)) == ["Add"]
    assert all(producers(node_of(after, "Conv", k))[0] == "DequantizeLinear" for k in range(3))
    assert op_types(after).count("QuantizeLinear") < op_types(quantized(before, feeds)[0]).count("QuantizeLinear")
    close(before, after, feeds, share=0.06)


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
