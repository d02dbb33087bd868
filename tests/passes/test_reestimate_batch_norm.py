"""BatchNormalization statistics: those of the data, in order, and what they give back after pruning."""

import numpy as np
import pytest

from graphopt import measure, models, oracle
from graphopt.api import run_pipeline
from graphopt.base import Context
from graphopt.data import Batches
from graphopt.errors import DataError
from graphopt.graph import constant_array
from graphopt.passes.reestimate_batch_norm import ReestimateBatchNorm
from graphopt.testing import apply, from_text

RNG = np.random.default_rng(0)
HEAD = '<ir_version: 8, opset_import: ["": 17]> '
BODY = """
g (float[n,3,6,6] x, float[4,3,3,3] w, float[3] g1, float[3] b1, float[3] m1, float[3] v1,
   float[4] g2, float[4] b2, float[4] m2, float[4] v2) => (float[n,4,4,4] y) {
  a = BatchNormalization (x, g1, b1, m1, v1)
  c = Conv (a, w)
  y = BatchNormalization <epsilon: float = 0.001> (c, g2, b2, m2, v2)
}
"""


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def two_norms():
    weights = {"w": normal(4, 3, 3, 3)}
    for n, channels in ((1, 3), (2, 4)):
        weights |= {f"{p}{n}": normal(channels) for p in "gbm"} | {f"v{n}": np.abs(normal(channels)) + 1}
    return from_text(HEAD + BODY, **weights)


FEEDS = {"x": normal(32, 3, 6, 6) * 3 + 2}
CONTEXT = Context(calibration=Batches(lambda: [FEEDS], divisible=True))


def test_outputs_are_normalised():
    """Each norm's output has mean beta and deviation gamma; the second sees the first corrected."""
    after, report = apply(ReestimateBatchNorm(), two_norms(), CONTEXT)
    assert [c.node for c in report.changes] == [n.name for n in after.graph if n.op_type == "BatchNormalization"]
    outputs = oracle.run(after, FEEDS, ["a", "y"])
    for node, name in ((next(iter(after.graph)), "a"), (list(after.graph)[-1], "y")):
        gamma, beta = (constant_array(node.inputs[i]) for i in (1, 2))
        np.testing.assert_allclose(outputs[name].mean(axis=(0, 2, 3)), beta, atol=1e-3)
        np.testing.assert_allclose(outputs[name].std(axis=(0, 2, 3)), np.abs(gamma), rtol=1e-2)


def test_momentum():
    before = two_norms()
    after, _ = apply(ReestimateBatchNorm(momentum=0.75), before, CONTEXT)
    old, new = (constant_array(next(iter(m.graph)).inputs[3]) for m in (before, after))
    np.testing.assert_allclose(new, 0.75 * old + 0.25 * FEEDS["x"].mean(axis=(0, 2, 3)), rtol=1e-5)


def test_accuracy_after_pruning_comes_back():
    model = models.get("digits")

    def accuracy(pipeline):
        result = run_pipeline(model.path(), pipeline, calibration=model.calibration)
        return measure.evaluate(oracle.Session(result.model).run, model.evaluation())

    pruned = accuracy("prune-magnitude{sparsity=0.8,recover=false}")
    assert accuracy("prune-magnitude{sparsity=0.8,recover=false},reestimate-batch-norm") > pruned + 0.2
    assert accuracy("reestimate-batch-norm,fold-batch-norm") > 0.98  # the trained weights lose next to nothing


def test_what_is_left_alone():
    model = two_norms()
    constant = Context(calibration=Batches(lambda: [{"x": np.ones((4, 3, 6, 6), np.float32)}], divisible=True))
    _, report = apply(ReestimateBatchNorm(), model, constant)
    assert not report.changes
    assert "constant" in report.skipped[0].reason
    with pytest.raises(DataError, match="calibration"):
        apply(ReestimateBatchNorm(), model)
    training = from_text(
        f"""{HEAD} g (float[n,3,6,6] x, float[3] g1, float[3] b1, float[3] m1, float[3] v1) => (float[n,3,6,6] y)
        {{ y, p, q = BatchNormalization <training_mode: int = 1> (x, g1, b1, m1, v1) }}""",
        g1=normal(3), b1=normal(3), m1=normal(3), v1=np.abs(normal(3)),
    )  # fmt: skip
    _, report = apply(ReestimateBatchNorm(), training, CONTEXT)
    assert "training_mode" in report.skipped[0].reason
