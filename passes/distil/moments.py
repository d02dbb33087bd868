"""First and second moments of rows that stream by: all that least squares needs of the data."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
CHUNK = 1 << 22
"""Numbers taken into float64 at once; bounds the memory an observation needs beyond the batch itself."""


class Moments:
    """Mean and covariance of d-vectors, accumulated in float64.

    Sums are taken about the mean of the first batch, so that a large mean does not cancel away the variance.
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self._shift = np.zeros(size)
        self._first = np.zeros(size)
        self._second = np.zeros((size, size))

    def add(self, rows: Array) -> None:
        """Take in rows (n, d) of any float dtype."""
        if self.count == 0 and len(rows):
            self._shift = rows.mean(axis=0, dtype=np.float64)
        step = max(1, CHUNK // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            part = rows[start : start + step] - self._shift
            self._first += part.sum(axis=0)
            self._second += part.T @ part
        self.count += len(rows)

    @property
    def mean(self) -> Array:
        """E[z], shape (d,)."""
        return self._shift + self._first / self.count

    @property
    def covariance(self) -> Array:
        """E[(z - mean)(z - mean)^T], shape (d, d)."""
        return self.about(self.mean)

    def about(self, point: Array) -> Array:
        """E[(z - point)(z - point)^T], shape (d, d)."""
        drift, gap = self._first / self.count, point - self._shift
        return self._second / self.count - np.outer(drift, gap) - np.outer(gap, drift) + np.outer(gap, gap)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows together."""
        both = Moments(len(self._shift))
        both.count = self.count + other.count
        both._shift = self._shift
        both._first = self._first + other.count * (other.mean - self._shift)
        both._second = self._second + other.count * other.about(self._shift)
        return both


def standard(variances: Array) -> Array:
    """What scales each channel to unit variance; one that hardly varies counts as varying a thousandth of the most."""
    largest = float(variances.max(initial=0.0))
    return np.ones_like(variances) if largest <= 0.0 else 1.0 / np.sqrt(np.maximum(variances, 1e-6 * largest))


def relative(residual: float, spread: float) -> float:
    """``sqrt(residual / spread)``; a teacher that never varies is matched only by an all-zero residual."""
    if spread <= 0.0:
        return 0.0 if residual <= 0.0 else float("inf")
    return float(np.sqrt(max(residual, 0.0) / spread))
