"""The digits and MNIST models: their baselines, their data, and that the trainer still makes them."""

import itertools

import numpy as np
import pytest

from graphopt import oracle
from graphopt.graph import load
from graphopt.models import digits, get, mnist

TRAINED = ["digits", pytest.param("mnist", marks=pytest.mark.slow)]
"""MNIST's data is fetched."""


def score(model, path):
    evaluation = model.evaluation()
    session = oracle.Session(load(path))
    return evaluation.score(session.run(feeds) for feeds in evaluation.feeds())


def images(batches):
    return np.concatenate([feeds["image"] for feeds in batches])


@pytest.mark.parametrize("name", TRAINED)
def test_baseline_is_reproduced(name):
    model = get(name)
    evaluation = model.evaluation()
    assert score(model, model.path()) == pytest.approx(model.baseline, abs=0.5 / evaluation.n)
    assert sum(len(feeds["image"]) for feeds in evaluation.feeds()) == evaluation.n


@pytest.mark.parametrize("name", TRAINED)
def test_labels_that_are_not_the_images_own_score_like_guesses(name):
    model = get(name)
    evaluation, session = model.evaluation(), oracle.Session(load(model.path()))
    outputs = [session.run(feeds)["logits"] for feeds in evaluation.feeds()]
    assert evaluation.score({"logits": np.roll(batch, 1, axis=0)} for batch in outputs) < 0.25


@pytest.mark.parametrize("name", TRAINED)
def test_calibration_examples_and_evaluation_share_no_image(name):
    model = get(name)
    held_out = {image.tobytes() for image in images(model.evaluation().feeds())}
    calibration = {image.tobytes() for image in images(model.calibration())}
    assert len(held_out) == model.evaluation().n
    assert len(calibration) == 256
    assert not held_out & calibration
    assert not held_out & {image.tobytes() for image in model.example(64)["image"]}


@pytest.mark.parametrize("name", TRAINED)
def test_calibration_iterates_again_and_feeds_the_model(name):
    model = get(name)
    calibration = model.calibration()
    np.testing.assert_array_equal(images(calibration), images(calibration))
    session = oracle.Session(load(model.path()))
    for feeds in itertools.chain(itertools.islice(calibration, 1), [model.example(1), model.example(3)]):
        assert session.run(feeds)["logits"].shape == (len(feeds["image"]), 10)


def test_example_repeats_when_asked_for_more_than_there_is():
    assert get("digits").example(2000)["image"].shape == (2000, 1, 8, 8)


@pytest.mark.parametrize(("name", "norms"), [("digits", 5), ("mnist", 6)])
def test_batch_norm_is_unfused_and_statistics_are_trained(name, norms):
    model = load(get(name).path())
    nodes = [node for node in model.graph if node.op_type == "BatchNormalization"]
    assert len(nodes) == norms
    assert [node.op_type for node in model.graph].count("Add") == 1
    for node in nodes:
        scale, _, mean, var = (value.const_value.numpy() for value in node.inputs[1:])
        assert np.ptp(scale) > 0
        assert np.abs(mean).max() > 0.01
        assert (var > 0).all()
    assert get(name).path().stat().st_size < 200_000
    assert str(model.graph.inputs[0].shape[0]) == str(model.graph.outputs[0].shape[0]) == "N"


def test_a_short_training_already_recognises_digits(tmp_path):
    digits.train(tmp_path / "short.onnx", epochs=3)
    assert score(get("digits"), tmp_path / "short.onnx") > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("module", "floor"), [(digits, 0.985), (mnist, 0.975)], ids=["digits", "mnist"])
def test_training_anew_gives_a_model_as_good(tmp_path, module, floor):
    """Bytes agree on one machine only, because matrix products round otherwise on another."""
    path = tmp_path / "again.onnx"
    module.train(path)
    assert score(get(module.__name__.rpartition(".")[2]), path) >= floor


@pytest.mark.slow
def test_the_frozen_digits_are_scikit_learns(tmp_path):
    digits.freeze(tmp_path / "digits.npz")
    with np.load(tmp_path / "digits.npz") as fresh:
        pixels, labels = digits.data()
        np.testing.assert_array_equal(fresh["images"], pixels[:, 0] * 16)
        np.testing.assert_array_equal(fresh["labels"], labels)
        assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
