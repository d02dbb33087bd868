"""How far one array is from another: signal to noise in dB, largest and relative error."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CLEAN = 200.0
"""Decibels said of a value without any error."""
PIECE = 1 << 20
"""Elements that are compared at once, in float64."""


@dataclasses.dataclass(frozen=True)
class Error:
    """`db` is ``10 log10(sum y^2 / sum (y - y~)^2)`` in decibels, at most `CLEAN`; `largest` is ``max|y - y~|``, and
    `relative` that divided by ``max|y|`` (by 1 where y is all zeros). Infinity where a NaN or infinity is new.
    """

    db: float
    largest: float
    relative: float


class Sums:
    """Adds up the error of an array that comes in pieces: `signal` is ``sum y^2``, `noise` ``sum (y - y~)^2``.

    Equal infinities and NaN in both are no error; a new one is an infinite error.
    """

    def __init__(self) -> None:
        self.signal = self.noise = self._largest = self._peak = 0.0

    def add(self, want: Array, got: Array) -> None:
        """Count `got` where `want` was due: arrays of one shape, of numbers or booleans."""
        left, right = want.reshape(-1), got.reshape(-1)
        for start in range(0, left.size, PIECE):
            y, gap = _gap(left[start : start + PIECE], right[start : start + PIECE])
            finite = y[np.isfinite(y)]
            self.signal += float(np.square(finite).sum())
            self.noise += float(np.square(gap).sum())
            self._largest = max(self._largest, float(gap.max(initial=0.0)))
            self._peak = max(self._peak, float(np.abs(finite).max(initial=0.0)))

    def error(self) -> Error:
        """The error of all that was added."""
        return Error(decibels(self.signal, self.noise), self._largest, self._largest / (self._peak or 1.0))


def _gap(want: Array, got: Array) -> tuple[Array, Array]:
    """`want` in float64, and ``|want - got|``."""
    y, other = want.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(y - other)
    same = (y == other) | (np.isnan(y) & np.isnan(other))
    return y, np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap))


def decibels(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)``, at most `CLEAN`."""
    if not np.isfinite(noise):
        return -CLEAN
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / max(noise, 1e-300)), -CLEAN, CLEAN)) if noise else CLEAN
