"""The package-borne models, fetched: their float baselines are reproduced, and their feeds fit them."""

import hashlib

import numpy as np
import pytest

from graphopt import oracle
from graphopt.graph import load
from graphopt.models import get

pytestmark = pytest.mark.slow

FETCHED = [
    "angle-classifier",
    "ocr-detector",
    "ocr-recogniser",
    "efficientnet-lite0",
    "crepe-tiny",
    "crepe-full",
    "magika",
    "minilm-l3",
    "yolox",
    "basic-pitch",
]


@pytest.mark.parametrize("name", FETCHED)
def test_baseline_is_reproduced(name):
    model = get(name)
    evaluation = model.evaluation()
    session = oracle.Session(load(model.path()), optimised=True)
    value = evaluation.score(session.run(feeds) for feeds in evaluation.feeds())
    assert value == pytest.approx(model.baseline, abs=max(0.005, 1 / evaluation.n))


@pytest.mark.parametrize("name", FETCHED)
def test_calibration_is_read_again_and_shares_no_sample_with_the_evaluation(name):
    model = get(name)
    calibration = model.calibration()
    samples = {digest(feeds) for feeds in calibration}
    assert len(samples) > 1
    assert samples == {digest(feeds) for feeds in calibration}
    assert not samples & {digest(feeds) for feeds in model.evaluation().feeds()}
    oracle.run(load(model.path()), next(iter(calibration)))


@pytest.mark.parametrize("name", [name for name in FETCHED if name != "yolox"])  # its batch is 1
def test_example_gives_the_batch_that_was_asked_for(name):
    model = get(name)
    two = model.example(2)
    assert {array.shape[0] for array in two.values()} == {2}
    session = oracle.Session(load(model.path()))
    both = session.run(two)
    for row in range(2):
        alone = session.run({key: array[row : row + 1] for key, array in two.items()})
        for key, array in alone.items():
            np.testing.assert_allclose(both[key][row], array[0], rtol=1e-3, atol=1e-4)


def digest(feeds):
    return hashlib.sha256(b"".join(feeds[key].tobytes() for key in sorted(feeds))).hexdigest()
