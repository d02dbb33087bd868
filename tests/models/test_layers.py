"""Gradients of the numpy trainer against finite differences, and its layers against onnxruntime."""

import numpy as np
import pytest

from graphopt import oracle
from graphopt.models.export import to_onnx
from graphopt.models.layers import BatchNorm, Classifier, Conv, MaxPool, Relu, Residual, forward, init
from graphopt.models.train import Recipe, cross_entropy, fit, split

LAYERS = {
    "conv1x1": (Conv("l", 3, 4, kernel=1),),
    "conv3x3": (Conv("l", 3, 4),),
    "conv5x5": (Conv("l", 3, 2, kernel=5),),
    "batch-norm": (BatchNorm("l", 3),),
    "relu": (Relu("l"),),
    "max-pool": (MaxPool("l"),),
    "residual": (Residual("l", (Conv("c", 3, 3), BatchNorm("b", 3))),),
    "classifier": (Classifier("l", 3, 5),),
    "network": (
        *(Conv("c1", 3, 4), BatchNorm("b1", 4), Relu("r1"), MaxPool("p")),
        *(Residual("s", (Conv("c2", 4, 4), BatchNorm("b2", 4))), Relu("r2"), Classifier("l", 4, 5)),
    ),
}


def double(params):
    return {key: value.astype(np.float64) for key, value in params.items()}


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_match_finite_differences(name, training):
    """For a random direction d: ``(f(v + h d) - f(v - h d)) / 2h = <gradient, d>``, f = <output, random>."""
    layers, rng = LAYERS[name], np.random.default_rng(7)
    params = double(init(layers, rng))
    for key in params:
        if key.endswith((".scale", ".bias", ".mean", ".var")):
            params[key] = rng.uniform(0.5, 1.5, params[key].shape)
    x = rng.standard_normal((3, 5, 6, 3))
    y, backward = forward(layers, {k: v.copy() for k, v in params.items()}, x, training)
    weights = rng.standard_normal(y.shape)
    dx, gradients = backward(weights)
    assert set(gradients) == {key for key in params if not key.endswith((".mean", ".var"))}

    def slope(move):
        def value(step):
            moved, image = move(step)
            return (forward(layers, {k: v.copy() for k, v in moved.items()}, image, training)[0] * weights).sum()

        return (value(1e-6) - value(-1e-6)) / 2e-6

    for key, gradient in [*gradients.items(), ("", dx)]:
        direction = rng.standard_normal(gradient.shape)
        if key:
            numeric = slope(lambda step, k=key, d=direction: ({**params, k: params[k] + step * d}, x))
        else:
            numeric = slope(lambda step, d=direction: (params, x + step * d))
        assert numeric == pytest.approx((gradient * direction).sum(), rel=1e-5, abs=1e-7), key or "input"


def test_max_pool_shares_the_gradient_among_equal_elements():
    _, backward = MaxPool("p").forward({}, np.zeros((1, 2, 3, 1)), training=True)
    dx, _ = backward(np.ones((1, 1, 1, 1)))
    np.testing.assert_allclose(dx[0, :, :, 0], [[0.25, 0.25, 0], [0.25, 0.25, 0]])


def test_cross_entropy_and_its_gradient():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((4, 3)) * 50, np.array([0, 2, 1, 1])
    loss, gradient = cross_entropy(logits, labels)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert loss == pytest.approx(-np.log(softmax[range(4), labels]).mean())
    direction = rng.standard_normal(logits.shape)
    numeric = (
        cross_entropy(logits + 1e-6 * direction, labels)[0] - cross_entropy(logits - 1e-6 * direction, labels)[0]
    ) / 2e-6
    assert numeric == pytest.approx((gradient * direction).sum(), rel=1e-5)


def test_cross_entropy_survives_large_logits():
    loss, gradient = cross_entropy(np.array([[1e4, 0.0]]), np.array([1]))
    assert loss == pytest.approx(1e4)
    assert np.isfinite(gradient).all()


def test_batch_norm_moves_its_running_statistics_towards_the_batch():
    layer, rng = BatchNorm("b", 2), np.random.default_rng(0)
    params, x = double(layer.init(rng)), rng.normal(5, 3, (8, 4, 4, 2))
    for _ in range(200):
        y, _ = layer.forward(params, x, training=True)
    np.testing.assert_allclose(params["b.mean"], x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(params["b.var"], x.var((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(layer.forward(params, x, training=False)[0], y, rtol=1e-5, atol=1e-6)


def test_exported_network_computes_what_the_trainer_does():
    layers, rng = LAYERS["network"], np.random.default_rng(1)
    params = init(layers, rng)
    for key in params:
        if key.endswith((".scale", ".bias", ".mean", ".var")):
            params[key] = rng.uniform(0.5, 1.5, params[key].shape).astype(np.float32)
    model = to_onnx(layers, params, (3, 7, 6), "network")
    assert [n.op_type for n in model.graph].count("BatchNormalization") == 2
    x = rng.standard_normal((5, 3, 7, 6)).astype(np.float32)
    expected, _ = forward(layers, params, x.transpose(0, 2, 3, 1), training=False)
    np.testing.assert_allclose(oracle.run(model, {"image": x})["logits"], expected, rtol=1e-4, atol=1e-5)


def test_split_is_disjoint_complete_and_seeded():
    train, held_out = split(100, 30, seed=1)
    assert len(held_out) == 30
    assert sorted([*train, *held_out]) == list(range(100))
    np.testing.assert_array_equal(split(100, 30, seed=1)[1], held_out)
    assert not np.array_equal(split(100, 30, seed=2)[1], held_out)


def test_training_learns_and_the_same_seed_gives_the_same_bytes():
    """Bright left half or bright right half: separable, so a few steps must get it."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 256)
    images = rng.normal(0, 0.3, (256, 1, 6, 6)).astype(np.float32)
    images[labels == 0, :, :, :3] += 1
    images[labels == 1, :, :, 3:] += 1
    edges = (Conv("c", 1, 6, kernel=5), BatchNorm("b", 6), Relu("r"), Classifier("l", 6, 2))
    params = fit(edges, images, labels, Recipe(epochs=8, seed=0, batch=32))
    again = fit(edges, images, labels, Recipe(epochs=8, seed=0, batch=32))
    assert all(np.array_equal(params[key], again[key]) for key in params)
    assert all(value.dtype == np.float32 for value in params.values())
    logits, _ = forward(edges, params, images.transpose(0, 2, 3, 1), training=False)
    assert (logits.argmax(1) == labels).mean() > 0.9
    other = fit(edges, images, labels, Recipe(epochs=8, seed=1, batch=32))
    assert not np.array_equal(params["c.weight"], other["c.weight"])
