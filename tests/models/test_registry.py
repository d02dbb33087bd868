import numpy as np
import pytest

from graphopt.errors import DataError, UsageError
from graphopt.models import get, names
from graphopt.models.base import ReferenceModel, accuracy, batches


@pytest.mark.parametrize("name", names())
def test_every_entry_is_complete(name):
    model = get(name)
    assert isinstance(model, ReferenceModel)
    assert model.name == name
    assert model.summary
    assert model.licence
    assert model.source
    assert (model.baseline is None) == (model.evaluation is None)
    if model.evaluation is not None:
        assert model.calibration is not None
        assert 0 < model.baseline <= 1


def rows(batches):
    """Each sample's bytes."""
    return {row.tobytes() for feeds in batches for row in next(iter(feeds.values()))}


@pytest.mark.parametrize("name", ["digits", "angle-classifier", "ocr-recogniser", "crepe-tiny"])
def test_weights_are_fitted_chosen_and_reported_on_different_samples(name):
    model = get(name)
    fitted, other = rows(model.unlabelled(40)), rows(model.selection().feeds())
    reported = rows(model.evaluation().feeds()) if name != "angle-classifier" else set()  # another text altogether
    assert 0 < len(fitted) <= 40
    assert len(other) >= 100
    assert fitted.isdisjoint(other)
    assert reported.isdisjoint(fitted | other)
    assert rows(model.unlabelled(40)) == fitted


def test_unknown_name_lists_near_ones():
    with pytest.raises(UsageError, match="resnet50"):
        get("resnet")


def test_unknown_name_far_from_all_lists_all():
    with pytest.raises(UsageError, match=r"digits.*vgg19"):
        get("@")


def test_batches_cover_all_samples_in_order():
    samples = np.arange(7)
    parts = [feeds["x"] for feeds in batches("x", samples, 3)]
    assert [len(part) for part in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(parts), samples)


def test_accuracy_counts_the_right_ones_and_refuses_a_short_run():
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    labels = np.array([1, 0, 0])
    assert accuracy([{"y": scores[:2]}, {"y": scores[2:]}], "y", labels) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="2 predictions came for 3"):
        accuracy([{"y": scores[:2]}], "y", labels)
