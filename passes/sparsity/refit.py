"""Least squares for the weights that are left, with the mask held fixed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CHECKED = 4
"""Every so manieth row is kept out of the fit and says when to stop."""
RIDGE = 1e-3
"""Pull towards the weights as they were, in units of the mean power of a column."""
STEPS, EACH = 60, 5
"""Conjugate gradients at most, and after how many the rows kept out are looked at."""


@dataclasses.dataclass
class Fit:
    """Rows x [n, K] of a layer's input as it is now, and y [n, N] that its output should be: both without their mean.

    `power`: of y on the rows kept out.
    """

    x: Array
    y: Array
    x_held: Array
    y_held: Array

    def __post_init__(self) -> None:
        """Products that every step needs, where rows outnumber columns."""
        n, k = self.x.shape
        self.squares = np.square(self.x).mean(axis=0) if n else np.zeros(k, self.x.dtype)
        self.gram = self.x.T @ self.x / n if n >= k else None
        self.cross = self.y.T @ self.x / max(n, 1)
        self.power = max(float(np.square(self.y_held).sum()), 1e-30)

    def error(self, v: Array) -> float:
        """Part of the output's power that weights `v` [N, K] miss, on the rows kept out."""
        return float(np.square(self.y_held - self.x_held @ v.T).sum()) / self.power

    def curvature(self, v: Array) -> Array:
        """``v E[x x^T]``."""
        return v @ self.gram if self.gram is not None else (v @ self.x.T) @ self.x / len(self.x)

    def inverse_diagonal(self, damping: float) -> Array | None:
        """The diagonal of ``(E[x x^T] + damping * mean power)^-1``; None where columns are too many for it."""
        if self.gram is None:
            return None
        strength = max(damping * float(self.squares.mean()), 1e-30)
        return np.diagonal(np.linalg.inv(self.gram.astype(np.float64) + strength * np.eye(len(self.gram))))


def split(x: Array, y: Array, centred: bool) -> Fit:
    """The rows as a fit, every `CHECKED`-th kept out; without the means of the others where `centred`."""
    held = np.arange(len(x)) % CHECKED == CHECKED - 1
    held = held if held.any() else np.ones(len(x), bool)
    rest = ~held if not held.all() else held
    mean_x, mean_y = (a[rest].mean(axis=0) if centred else np.zeros(a.shape[1], a.dtype) for a in (x, y))
    return Fit(x[rest] - mean_x, y[rest] - mean_y, x[held] - mean_x, y[held] - mean_y)


def refit(fit: Fit, original: Array, now: Array, kept: Array) -> Array:
    """``argmin_V E|y - V x|^2 + ridge |V - V0|^2`` over V that are zero where `kept` is not.

    V0 is `original` or `now`, masked, whichever does better on the rows kept out.

    Conjugate gradients on all rows of V at once (M. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving
    linear systems", 1952), scaled by the powers of the columns. Least squares on a fixed support is what Optimal Brain
    Surgeon's updates end in (Hassibi and Stork 1993; Frantar and Alistarh 2023, SparseGPT, makes them column by column
    for speed). The step that does best on the rows kept out is taken: with few rows that is an early one.
    """
    v = min((np.where(kept, weights, 0) for weights in (original, now)), key=fit.error)
    strength = RIDGE * max(float(fit.squares.mean()), 1e-30)
    scale = 1 / (fit.squares + strength)
    residual = np.where(kept, fit.cross - fit.curvature(v), 0)
    direction = residual * scale
    before = (residual * direction).sum(axis=1)
    best, least, worse = v, fit.error(v), 0
    for step in range(1, STEPS + 1):
        image = np.where(kept, fit.curvature(direction) + strength * direction, 0)
        length = (direction * image).sum(axis=1)
        alpha = np.divide(before, length, out=np.zeros_like(before), where=length > 0)[:, None]
        v, residual = v + alpha * direction, residual - alpha * image
        after = (residual * residual * scale).sum(axis=1)
        beta = np.divide(after, before, out=np.zeros_like(before), where=before > 0)[:, None]
        direction, before = residual * scale + beta * direction, after
        if step % EACH == 0:
            error = fit.error(v)
            worse = 0 if error < 0.999 * least else worse + 1
            if error < least:
                best, least = v, error
            if worse == 2:
                break
    return best
