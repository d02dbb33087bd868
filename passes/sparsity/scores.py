"""How much each weight matters."""

from __future__ import annotations

import zlib
from typing import Any, Literal

import numpy as np

from graphopt.passes.sparsity.refit import Fit

Array = np.ndarray[Any, Any]

Criterion = Literal["l1", "l2", "activation", "obs", "random"]
NEEDS_DATA = frozenset({"activation", "obs"})
DAMPING = 1e-2
"""Of the mean power of a column, added to the Hessian's diagonal before it is inverted."""


def by_weight(criterion: Criterion, array: Array, name: str, seed: int) -> Array:
    """Scores from the weights alone: their magnitudes, or chance (the same for a name and seed)."""
    if criterion == "random":
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return np.where(array != 0, 1 - rng.random(array.shape, np.float32), 0)
    return np.abs(array)


def by_input(criterion: Criterion, fit: Fit, v: Array, name: str, seed: int) -> Array:
    """Scores [N, K] of weights `v` that meet the inputs of `fit`.

    activation: ``|v| * sqrt(E[x^2])`` (Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language
    Models). obs: ``|v| / sqrt([E[x x^T]^-1]_kk)``, the root of the error that is left when the weight goes and the
    others of its output make up for it (Hassibi and Stork 1993, Optimal Brain Surgeon); activation's where the inputs
    are too many to invert that.
    """
    if criterion not in NEEDS_DATA:
        return by_weight(criterion, v, name, seed)
    inverse = fit.inverse_diagonal(DAMPING) if criterion == "obs" else None
    power = fit.squares if inverse is None else 1 / np.maximum(inverse, 1e-30)
    return np.abs(v) * np.sqrt(power + 1e-12 * power.max()).astype(np.float32)
