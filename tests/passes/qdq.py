"""What the tests of insert-qdq build, run and look at."""

import numpy as np

from graphopt import oracle
from graphopt.base import Context
from graphopt.data import Batches
from graphopt.graph import constant_array
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.testing import apply, from_text

RNG = np.random.default_rng(0)
HEAD = '<ir_version: 8, opset_import: ["": 17]> '


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


def initializers(model):
    return list(model.graph.initializers.values())


CONV_RELU_CONV = """
g (float[n,3,8,8] x, float[6,3,3,3] w1, float[6] b1, float[4,6,1,1] w2) => (float[n,4,6,6] y) {
  a = Conv (x, w1, b1)
  r = Relu (a)
  y = Conv (r, w2)
}
"""


def conv_relu_conv():
    return build(CONV_RELU_CONV, w1=normal(6, 3, 3, 3), b1=normal(6), w2=normal(4, 6, 1, 1))


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
