"""SGD and Adam, in place and block by block: a block of weight, gradient and moments stays in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from graphopt.training.window import Array

Name = Literal["adam", "sgd"]
BLOCK = 1 << 15
MOMENTUM = 0.9
BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Optimizer:
    """Updates `weights` from their gradients; `moments` and `steps` are its state, for checkpoints.

    sgd: ``m = 0.9 m + g; w -= lr (g + 0.9 m)`` (Nesterov's momentum; Sutskever et al. 2013).
    adam: ``m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= lr m' / (sqrt(v') + eps)`` with m', v' the moments
    without their bias toward zero (Kingma & Ba 2015), and weight decay apart from the gradient, ``w -= lr decay w``
    (Loshchilov & Hutter 2019), on matrices and kernels only.
    """

    def __init__(self, name: Name, weights: Sequence[Array], decay: float) -> None:
        self._name, self._decay = name, decay
        self._weights = [weight.reshape(-1) for weight in weights]
        self._decayed = [weight.ndim > 1 for weight in weights]
        self.moments = [[np.zeros_like(w) for w in self._weights] for _ in range(2 if name == "adam" else 1)]
        self.steps = 0

    def update(self, gradients: Sequence[Array], rate: float) -> None:
        """One step; `gradients` are used up."""
        self.steps += 1
        step = self._adam if self._name == "adam" else self._sgd
        for i, (weight, gradient) in enumerate(zip(self._weights, gradients, strict=True)):
            decay = 1 - rate * self._decay if self._decayed[i] else 1.0
            flat = gradient.reshape(-1)
            for block in _blocks(len(weight)):
                if decay != 1.0:
                    weight[block] *= decay
                step(weight[block], flat[block], [moment[i][block] for moment in self.moments], rate)

    def _sgd(self, weight: Array, gradient: Array, moments: list[Array], rate: float) -> None:
        (m,) = moments
        m *= MOMENTUM
        m += gradient
        gradient += MOMENTUM * m
        gradient *= rate
        weight -= gradient

    def _adam(self, weight: Array, gradient: Array, moments: list[Array], rate: float) -> None:
        m, v = moments
        first, second = BETAS
        m *= first
        m += (1 - first) * gradient
        gradient *= gradient
        v *= second
        v += (1 - second) * gradient
        size = np.sqrt(v, out=gradient)
        size /= np.sqrt(1 - second**self.steps).astype(np.float32)
        size += EPSILON
        np.divide(m, size, out=size)
        size *= np.float32(rate / (1 - first**self.steps))
        weight -= size


def _blocks(size: int) -> Iterator[slice]:
    for start in range(0, size, BLOCK):
        yield slice(start, start + BLOCK)
