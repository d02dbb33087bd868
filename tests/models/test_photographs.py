"""Photographs to fit and to choose by: no picture twice, the same crops each time."""

import json
from pathlib import Path

import numpy as np
import pytest

from graphopt import models
from graphopt.graph import load
from graphopt.measure import evaluate
from graphopt.models.photographs import random_crops, square, views
from graphopt.oracle import Session

pytest.importorskip("PIL")
PICTURES = [np.random.default_rng(k).integers(0, 256, (40 + k, 60, 3), dtype=np.uint8) for k in range(3)]


def test_no_picture_is_both_fitted_on_and_chosen_or_reported_by():
    folder = Path(models.__file__).parent
    kinds = json.loads((folder / "photographs.json").read_text())
    fitted, chosen = (
        {h for members in kinds[k].values() for h in members.values()} for k in ("unlabelled", "selection")
    )
    reported = set(json.loads((folder / "foolbox.json").read_text()).values())
    assert len(fitted) >= 20
    assert len(chosen) >= 10
    assert not fitted & chosen
    assert not (fitted | chosen) & reported


def test_crops_are_the_same_each_time_and_the_first_for_any_number():
    crops = random_crops(PICTURES, 7, 16)
    assert crops.shape == (7, 16, 16, 3)
    np.testing.assert_array_equal(random_crops(PICTURES, 4, 16), crops[:4])
    assert len({crop.tobytes() for crop in crops}) == 7
    assert not np.array_equal(random_crops(PICTURES, 7, 16, seed=1), crops)


def test_views_are_nine_places_and_their_mirror_images():
    picture = square(PICTURES[0], 20)
    found = list(views([picture], 16, 2))
    assert len(found) == 18
    np.testing.assert_array_equal(found[0], picture[:16, :16])
    np.testing.assert_array_equal(found[-2], picture[4:, 4:])
    for one, mirrored in zip(found[::2], found[1::2], strict=True):
        np.testing.assert_array_equal(one, mirrored[:, ::-1])


@pytest.mark.slow
def test_efficientnet_agrees_with_itself_on_views():
    model = models.get("efficientnet-lite0")
    evaluation = model.selection()
    assert (evaluation.metric, evaluation.n) == ("agreement", 234)
    assert evaluate(Session(load(model.path())).run, evaluation) == 1.0
