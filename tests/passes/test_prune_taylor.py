"""The Taylor criterion of prune-channels, where its value is known."""

import numpy as np

from graphopt import models, oracle
from graphopt.api import run_pipeline
from graphopt.passes.channels.groups import find_channels
from graphopt.passes.channels.taylor import by_gradients
from graphopt.testing import from_text


def test_of_a_linear_net_it_is_exact() -> None:
    """Without activations the first order is all there is: a unit's score is the power that goes with it."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((6, 5)) * np.array([0.1, 3, 0.5, 1, 0.03])).astype(np.float32)
    v = rng.standard_normal((5, 3)).astype(np.float32)
    model = from_text(
        '<ir_version: 9, opset_import: ["": 18]>\n'
        "g (float[N,6] x, float[6,5] w, float[5,3] v) => (float[N,3] y) { h = MatMul(x, w) y = MatMul(h, v) }",
        w=w, v=v,
    )  # fmt: skip
    x = rng.standard_normal((256, 6)).astype(np.float32)
    channels = find_channels(model.graph)
    scores = by_gradients(model, channels, [{"x": x}], 0)
    (layer,) = (one for one in channels.layers if one.node.outputs[0].name == "h")
    exact = ((x @ w) ** 2).sum(axis=0) * (v**2).sum(axis=1)
    found = scores[layer.outputs]
    np.testing.assert_allclose(found / found.sum(), exact / exact.sum(), rtol=0.6, atol=0.01)
    assert (np.argsort(found) == np.argsort(exact)).all()


def test_digits() -> None:
    """A trained network keeps more of its accuracy than where channels go at random; no refit in either."""
    entry = models.get("digits")
    scores = []
    for criterion in ("taylor", "random"):
        passes = f"fold-batch-norm,prune-channels{{macs=0.6,criterion={criterion},recover=false}}"
        result = run_pipeline(entry.path(), passes, calibration=entry.calibration)
        evaluation, session = entry.evaluation(), oracle.Session(result.model)
        scores.append(evaluation.score(session.run(feeds) for feeds in evaluation.feeds()))
    assert scores[0] > scores[1] + 0.1
