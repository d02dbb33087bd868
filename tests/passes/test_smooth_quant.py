"""SmoothQuant: exact on the float graph, and outlier channels stop spoiling the scale of all."""

import numpy as np
import pytest

from graphopt import oracle
from graphopt.base import Context
from graphopt.data import Batches
from graphopt.errors import DataError, UsageError
from graphopt.graph import constant_array
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.passes.smooth_quant import SmoothQuant
from graphopt.pipeline import parse_pipeline
from graphopt.testing import apply, assert_equivalent, from_text, op_types

RNG = np.random.default_rng(0)
HEAD = '<ir_version: 8, opset_import: ["": 17]> '


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def outliers(size=16):
    """A scale that makes two channels a hundred times as large as the others."""
    gamma = np.ones(size, np.float32)
    gamma[[3, 7]] = 100
    return gamma


WRITTEN_OUT = """
  m = ReduceMean <axes: ints = [-1]> (x)
  d = Sub (x, m)
  q = Mul (d, d)
  v = ReduceMean <axes: ints = [-1]> (q)
  s = Sqrt (v)
  n = Div (d, s)
  t = Mul (n, gamma)
  y = Add (beta, t)
"""
ONE_NODE = "y = LayerNormalization (x, gamma, beta)"


def block(norm=ONE_NODE, end="z = Add (a, b)", out="float[n,5,8] z"):
    body = f"""
    g (float[n,5,16] x, float[16] gamma, float[16] beta, float[16,8] w1, float[16,8] w2) => ({out}) {{
      {norm}
      a = MatMul (y, w1)
      b = MatMul (y, w2)
      {end}
    }}
    """
    return from_text(HEAD + body, gamma=outliers(), beta=normal(16), w1=normal(16, 8), w2=normal(16, 8))


FEEDS = {"x": normal(8, 5, 16)}
CONTEXT = Context(calibration=Batches(lambda: [FEEDS]))


@pytest.mark.parametrize("norm", [ONE_NODE, WRITTEN_OUT], ids=["one node", "written out"])
def test_layer_norm_takes_the_division(norm):
    before = block(norm)
    after, report = apply(SmoothQuant(), before, CONTEXT)
    assert_equivalent(before, after, rtol=1e-5, feeds=FEEDS)
    assert op_types(after) == op_types(before)
    old, new = report.facts["outliers"]["y"]
    assert old > 50
    assert new < 15
    assert len(report.changes) == 1


def test_a_residual_gets_a_mul_of_its_own():
    before = block(end="e = Add (a, b) r = Add (y, x) z = Concat <axis = -1> (e, r)", out="float[n,5,24] z")
    after, report = apply(SmoothQuant(), before, CONTEXT)
    assert_equivalent(before, after, rtol=1e-5, feeds=FEEDS)
    assert op_types(after).count("Mul") == 1
    assert "of its own" in report.changes[0].action


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_formula(alpha):
    before = block()
    after, _ = apply(SmoothQuant(alpha=alpha), before, CONTEXT)
    w = np.concatenate([constant_array(n.inputs[1]) for n in before.graph if n.op_type == "MatMul"], axis=1)
    peak = np.abs(oracle.run(before, FEEDS, ["y"])["y"]).max(axis=(0, 1))
    s = peak**alpha / np.abs(w).max(axis=1) ** (1 - alpha)
    got = next(n for n in after.graph if n.op_type == "MatMul").inputs[1]
    np.testing.assert_allclose(constant_array(got), w[:, :8] * s[:, None], rtol=1e-5)


def test_static_quantization_loses_less():
    before = block()
    want = oracle.run(before, FEEDS)["z"]
    errors = []
    for model in (before, apply(SmoothQuant(), before, CONTEXT)[0]):
        quantized, _ = apply(InsertQdq(observer="minmax"), model, CONTEXT)
        got = oracle.run(quantized, FEEDS)["z"]
        errors.append(np.square(got - want).sum())
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize(
    "end",
    [
        "z = Add (y, x)",  # nothing multiplies it
        "c = Transpose <perm = [0, 2, 1]> (y) z = MatMul (y, c)",  # no constant
        "z = Gemm <transA = 1> (f, w1)",
    ],
)
def test_near_misses(end):
    text = f"""
    g (float[2,5,16] x, float[5,3] f, float[16] gamma, float[16] beta, float[5,8] w1) => (float[a,b,c] z) {{
      y = LayerNormalization (x, gamma, beta)
      {end.replace("z = Gemm", "u = Gemm").replace("(f, w1)", "(f, w1) z = Add (y, x)")}
    }}
    """
    before = from_text(HEAD + text, gamma=outliers(), beta=normal(16), w1=normal(5, 8))
    feeds = {"x": normal(2, 5, 16), "f": normal(5, 3)}
    after, report = apply(SmoothQuant(), before, Context(calibration=Batches(lambda: [feeds])))
    assert not report.changes
    assert_equivalent(before, after, rtol=0, feeds=feeds)


def test_bad_inputs():
    with pytest.raises(DataError, match="calibration"):
        apply(SmoothQuant(), block())
    with pytest.raises(UsageError, match="alpha"):
        parse_pipeline("smooth-quant{alpha=2}")


def test_a_product_that_the_graph_returns_keeps_its_numbers():
    before = block(WRITTEN_OUT, out="float[n,5,8] z, float[n,5,16] t")
    after, report = apply(SmoothQuant(), before, CONTEXT)
    assert_equivalent(before, after, rtol=1e-5, feeds=FEEDS)
    assert "by a Mul of its own" in report.changes[0].action
