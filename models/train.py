"""Training of small image classifiers in plain numpy: the same seed gives the same bytes on the same machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from graphopt.models.layers import Array, Layer, Params, forward, init
from graphopt.progress import track


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with Nesterov momentum, the rate falling from `rate` to 0 along a cosine.

    `decay` is the weight decay of convolution and linear weights; `shift` moves each training image by up to
    that many pixels, zeros coming in.
    """

    epochs: int
    seed: int
    batch: int = 64
    rate: float = 0.1
    momentum: float = 0.9
    decay: float = 5e-4
    shift: int = 0


def split(count: int, held_out: int, seed: int) -> tuple[Array, Array]:
    """Indices for training and, disjoint from them, `held_out` for evaluation: a seeded permutation cut in two."""
    order = np.random.default_rng(seed).permutation(count)
    return order[held_out:], order[:held_out]


def fit(network: tuple[Layer, ...], images: Array, labels: Array, recipe: Recipe) -> Params:
    """Train `network` on images (N, C, H, W) float32 and labels (N,); the parameters, running statistics included."""
    rng = np.random.default_rng(recipe.seed)
    params = init(network, rng)
    velocity: Params = {}
    images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    steps = len(images) // recipe.batch
    for epoch in track(range(recipe.epochs), "training", recipe.epochs):
        order = rng.permutation(len(images))
        for step in range(steps):
            rate = recipe.rate * (1 + math.cos(math.pi * (epoch + step / steps) / recipe.epochs)) / 2
            chosen = order[step * recipe.batch : (step + 1) * recipe.batch]
            logits, backward = forward(network, params, _shifted(images[chosen], recipe.shift, rng), training=True)
            gradients = backward(cross_entropy(logits, labels[chosen])[1])[1]
            _update(params, gradients, velocity, rate, recipe)
    return params


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean of ``-log softmax(logits)[label]`` over the batch, and its gradient ``(softmax - onehot) / N``."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    gradient = np.exp(log_softmax)
    gradient[rows, labels] -= 1
    return float(-log_softmax[rows, labels].mean()), gradient / len(labels)


def _update(params: Params, gradients: Params, velocity: Params, rate: float, recipe: Recipe) -> None:
    """Nesterov: ``v = m v + g``, ``p -= rate (g + m v)``, with ``g`` the gradient and the decay."""
    for key, gradient in gradients.items():
        if key.endswith(".weight"):
            gradient = gradient + recipe.decay * params[key]
        velocity[key] = recipe.momentum * velocity.get(key, 0) + gradient
        params[key] -= rate * (gradient + recipe.momentum * velocity[key])


def _shifted(images: Array, most: int, rng: np.random.Generator) -> Array:
    if most == 0:
        return images
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    rows, cols = rng.integers(0, 2 * most + 1, (2, len(images)))
    moved = [image[i : i + height, j : j + width] for image, i, j in zip(padded, rows, cols, strict=True)]
    return np.stack(moved)
