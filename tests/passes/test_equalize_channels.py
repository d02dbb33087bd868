"""Cross-layer equalization: the float model stays, ranges meet, and what can't be rescaled is left."""

import numpy as np
import pytest

from graphopt import oracle
from graphopt.base import Context
from graphopt.data import Batches
from graphopt.graph import constant_array
from graphopt.passes.equalize_channels import EqualizeChannels
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.testing import apply, assert_equivalent, from_text

RNG = np.random.default_rng(0)
HEAD = '<ir_version: 8, opset_import: ["": 17]> '


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def lopsided(*shape):
    """Output channels whose ranges differ by up to 1 : 1000."""
    return (normal(*shape) * np.logspace(-1.5, 1.5, shape[0]).reshape(-1, *[1] * (len(shape) - 1))).astype(np.float32)


CHAIN = """
g (float[n,3,9,9] x, float[6,3,3,3] w1, float[6] b1, float[6,1,3,3] w2, float[6] b2, float[4,3,1,1] w3)
  => (float[n,4,2,2] y) {
  a = Conv (x, w1, b1)
  r = Relu (a)
  d = Conv <group: int = 6> (r, w2, b2)
  m = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (d)
  l = LeakyRelu (m)
  y = Conv <group: int = 2> (l, w3)
}
"""


def chain():
    weights = {"w1": lopsided(6, 3, 3, 3), "b1": normal(6), "w2": lopsided(6, 1, 3, 3), "b2": normal(6)}
    return from_text(HEAD + CHAIN, **weights, w3=normal(4, 3, 1, 1))


def weight(model, index):
    return constant_array([n for n in model.graph if n.op_type in ("Conv", "Gemm")][index].inputs[1])


def test_depthwise_chain():
    before = chain()
    after, report = apply(EqualizeChannels(), before)
    assert_equivalent(before, after, rtol=1e-5)
    assert [change.node for change in report.changes] == ["node", "node_2"]
    w1, w2, w3 = (np.abs(weight(after, i)) for i in range(3))
    r1, r2 = w1.max(axis=(1, 2, 3)), w2.max(axis=(1, 2, 3))
    r3 = w3.reshape(2, 2, 3).max(axis=1).reshape(-1)  # group g reads channels 3g to 3g + 2
    np.testing.assert_allclose(r1, r2, rtol=2e-3)
    np.testing.assert_allclose(r2, r3, rtol=2e-3)
    old, new = report.facts["spread"]["node"]
    assert old > 300
    assert new < old / 5
    again, _ = apply(EqualizeChannels(), after)
    np.testing.assert_allclose(weight(again, 1), weight(after, 1), rtol=3e-3)


def test_per_tensor_quantization_loses_less():
    """The reason for it: with one scale per tensor, the small channels keep their bits."""
    before = chain()
    after, _ = apply(EqualizeChannels(), before)
    feeds = {"x": normal(16, 3, 9, 9)}
    want = oracle.run(before, feeds)["y"]
    errors = []
    for model in (before, after):
        rounded = model.clone()
        for node in rounded.graph:
            if node.op_type == "Conv":
                array = constant_array(node.inputs[1])
                step = np.abs(array).max() / 127
                node.inputs[1].const_value = _tensor(np.rint(array / step) * step)
        errors.append(np.square(oracle.run(rounded, feeds)["y"] - want).sum())
    assert errors[1] < errors[0] / 3


def _tensor(array):
    import onnx_ir as ir

    return ir.tensor(array.astype(np.float32))


def test_gemm_layouts():
    body = """
    g (float[n,5] x, float[5,7] w1, float[7] b1, float[3,7] w2) => (float[n,3] y) {
      a = Gemm (x, w1, b1)
      r = Relu (a)
      y = Gemm <transB: int = 1> (r, w2)
    }
    """
    before = from_text(HEAD + body, w1=lopsided(7, 5).T.copy(), b1=normal(7), w2=normal(3, 7))
    after, report = apply(EqualizeChannels(), before)
    assert_equivalent(before, after, rtol=1e-5)
    np.testing.assert_allclose(np.abs(weight(after, 0)).max(0), np.abs(weight(after, 1)).max(0), rtol=2e-3)
    assert len(report.changes) == 1


def test_dead_channels_stay():
    w1 = lopsided(6, 3, 3, 3)
    w1[2] = 0
    before = from_text(
        HEAD + CHAIN, w1=w1, b1=normal(6), w2=lopsided(6, 1, 3, 3), b2=normal(6), w3=np.zeros((4, 3, 1, 1), np.float32)
    )
    after, _ = apply(EqualizeChannels(), before)
    assert_equivalent(before, after, rtol=1e-5, atol=1e-6)
    assert np.isfinite(weight(after, 0)).all()


CLIPPED = """
g (float[n,3,4,4] x, float[6,3,1,1] w1, float[4,6,1,1] w2, float[] low, float[] high) => (float[n,4,4,4] y) {
  a = Conv (x, w1)
  r = Clip (a, low, high)
  y = Conv (r, w2)
}
"""


def test_relu6_is_left():
    """Its bound would cut the rescaled channel elsewhere; a Clip without an upper bound is a Relu."""
    bounds = {"low": np.float32(0), "high": np.float32(6)}
    weights = {"w1": lopsided(6, 3, 1, 1), "w2": normal(4, 6, 1, 1)}
    _, report = apply(EqualizeChannels(), from_text(HEAD + CLIPPED, **weights, **bounds))
    assert not report.changes
    assert "does not scale" in report.skipped[0].reason
    text = CLIPPED.replace(", high)", ")").replace(", float[] high", "")
    open_above = from_text(HEAD + text, **weights, low=bounds["low"])
    after, report = apply(EqualizeChannels(), open_above)
    assert len(report.changes) == 1
    assert_equivalent(open_above, after, rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = Relu (a) y = Conv (r, w2) z = Add (r, r)", "read by"),
        ("z = Relu (a) y = Conv (z, w2)", "output of the graph"),
        ("r = Sigmoid (a) y = Conv (r, w2) z = Relu (y)", "does not scale"),
        ("r = Relu (a) s = Add (r, x) y = Conv (s, w2) z = Relu (y)", "does not scale"),
        ("r = Relu (a) y = Conv (x, r) z = Relu (y)", "does not scale"),
        ("r = Relu (a) y = Conv (r, w1) z = Relu (y)", "other nodes read the weight"),
    ],
)
def test_near_misses(body, reason):
    kind = "float[3,3,1,1]"
    text = f"g ({kind} x, {kind} w1, {kind} w2) => ({kind} y, {kind} z) {{ a = Conv (x, w1) {body} }}"
    before = from_text(HEAD + text, w1=lopsided(3, 3, 1, 1), w2=normal(3, 3, 1, 1))
    after, report = apply(EqualizeChannels(), before)
    assert not report.changes
    assert any(reason in skip.reason for skip in report.skipped)
    assert_equivalent(before, after, rtol=0)


def test_one_scale_per_tensor():
    """insert-qdq{per_channel=false}: what equalization is for."""
    rng = np.random.default_rng(1)
    factors = np.logspace(-1.5, 1.5, 16).astype(np.float32)
    w1 = rng.standard_normal((16, 3, 1, 1)).astype(np.float32) * factors.reshape(-1, 1, 1, 1)
    w2 = rng.standard_normal((4, 16, 1, 1)).astype(np.float32) / factors.reshape(-1, 1, 1)
    text = """g (float[n,3,4,4] x, float[16,3,1,1] w1, float[4,16,1,1] w2) => (float[n,4,4,4] y) {
      a = Conv (x, w1) r = Relu (a) y = Conv (r, w2)
    }"""
    before = from_text(HEAD + text, w1=w1, w2=w2)
    feeds = {"x": rng.standard_normal((16, 3, 4, 4)).astype(np.float32)}
    context = Context(calibration=Batches(lambda: [feeds]))
    want, errors = oracle.run(before, feeds)["y"], []
    for model in (before, apply(EqualizeChannels(), before)[0]):
        after, _ = apply(InsertQdq(per_channel=False), model, context)
        weights = [n.inputs[1].producer() for n in after.graph if n.op_type == "Conv"]
        assert [constant_array(w.inputs[1]).shape for w in weights] == [()] * 2
        errors.append(np.square(oracle.run(after, feeds)["y"] - want).sum())
    assert errors[1] < errors[0] / 10


def test_a_channel_that_is_all_bias_stays():
    """BatchNorm folding leaves such ones: dividing their bias by a tiny factor would spoil the activations' scale."""
    w1 = normal(6, 3, 3, 3)
    w1[2] *= 1e-9
    weights = {"b1": np.ones(6, np.float32), "w2": normal(6, 1, 3, 3), "b2": normal(6), "w3": normal(4, 3, 1, 1)}
    after, _ = apply(EqualizeChannels(), from_text(HEAD + CHAIN, w1=w1, **weights))
    conv = next(n for n in after.graph if n.op_type == "Conv")
    assert constant_array(conv.inputs[2])[2] == 1
