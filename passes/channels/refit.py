"""Least squares for one layer: remaining weights that reproduce what the layer gave before."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried, in units of the mean power of a column."""
CHECKED = 4
"""Every so manieth row is kept out of the fit that chooses between ridges."""


def ridge(x: Array, y: Array, start: Array, strength: float) -> Array:
    """``argmin_V |y - x V^T|^2 / n + strength * power * |V - start|^2``, power being the mean of the columns'.

    In closed form, ``V = start + R^T x (x^T x + n s)^-1`` with ``R = y - x start^T``; with fewer rows than columns
    the same by ``R^T (x x^T + n s)^-1 x``. Hoerl and Kennard 1970; pulled to `start` instead of to zero.
    """
    n, k = x.shape
    damping = n * strength * max(float(np.square(x).mean()), 1e-30)
    rest = y - x @ start.T
    if n < k:
        return start + np.linalg.solve(x @ x.T + damping * np.eye(n), rest).T @ x
    return start + np.linalg.solve(x.T @ x + damping * np.eye(k), x.T @ rest).T


def refit(x: Array, y: Array, starts: list[Array]) -> tuple[Array, Array, float, float]:
    """Weights V [outputs, k] and bias for ``y ~ V x + bias`` from rows x [n, k] and y [n, outputs].

    Whichever of the `starts`, and of the ridge fits from the best of them, does best on the rows kept out of the fit;
    that fit is then made with all rows. Also returns the error there before and after: ``|y - ...|^2 / |y - mean|^2``,
    before being the first start without a bias.
    """
    held = np.arange(len(x)) % CHECKED == CHECKED - 1
    enough = held.any() and not held.all()
    fit, check = (~held, held) if enough else (np.ones(len(x), bool),) * 2
    mean_x, mean_y = x[fit].mean(axis=0), y[fit].mean(axis=0)
    a, b = x[fit] - mean_x, y[fit] - mean_y
    c, d = x[check] - mean_x, y[check] - mean_y
    power = max(float(np.square(y[check] - y[check].mean(axis=0)).sum()), 1e-30)

    def error(weights: Array) -> float:
        return float(np.square(d - c @ weights.T).sum()) / power

    start = min(starts, key=error)
    best, chosen = error(start), None
    for strength in RIDGES if enough else ():
        loss = error(ridge(a, b, start, strength))
        if loss < best:
            best, chosen = loss, strength
    before = float(np.square(y[check] - x[check] @ starts[0].T).sum()) / power
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    weights = start if chosen is None else ridge(x - mean_x, y - mean_y, start, chosen)
    return weights, mean_y - weights @ mean_x, before, best


def replacement(x: Array, original: Array, kept: Array) -> Array:
    """A [channels before, channels now] with ``original ~ x A^T``: channels as combinations of those that stay.

    Ridge towards each kept channel standing for itself. With it, weights W over all channels become W A (Joo et al.
    2021, Linearly Replaceable Filters). Without a constant part, so that padding by zeros stays right.
    """
    start = np.zeros((original.shape[1], x.shape[1]))
    start[kept, np.arange(len(kept))] = 1.0
    return ridge(x, original, start, 1e-3)
