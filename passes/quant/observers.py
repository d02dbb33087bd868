"""What calibration remembers of a tensor, in constant memory, and the range it proposes from that."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np

from graphopt.passes.quant.arithmetic import scale_and_zero_point
from graphopt.passes.quant.spec import QuantSpec

Array = np.ndarray[Any, Any]
Observer: TypeAlias = Literal["minmax", "percentile", "mse"]

BINS = 1 << 14
"""Bins of a histogram, half of them for each sign."""
TAIL = 1e-4
"""Fraction of the values that the percentile observer leaves outside, at each end."""
_CHUNK = 1 << 20


class Statistics:
    """Minimum, maximum and a histogram of everything seen; the order and size of the batches don't matter.

    Bin i of the histogram covers ``[(i - BINS/2) * width, (i + 1 - BINS/2) * width)``. `width` is a power of two
    that doubles, merging neighbours, when a value lies outside; so the result depends on the values alone.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.counts = np.zeros(BINS, np.int64)
        self.width = float(np.finfo(np.float32).tiny)

    @property
    def seen(self) -> bool:
        """Was there any value?"""
        return self.low <= self.high or bool(np.isnan(self.low))

    @property
    def finite(self) -> bool:
        """Were all values finite?"""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    @property
    def peak(self) -> float:
        """The largest magnitude."""
        return max(-self.low, self.high)

    def update(self, array: Array) -> None:
        """Take in the values of `array` (float32, any shape)."""
        if not array.size:
            return
        self.low = float(np.minimum(self.low, array.min()))  # NaN stays
        self.high = float(np.maximum(self.high, array.max()))
        if not self.finite:
            return
        self._widen()
        flat = array.ravel()
        for start in range(0, flat.size, _CHUNK):
            index = np.floor(flat[start : start + _CHUNK] * np.float32(1 / self.width)).astype(np.int32)
            self.counts += np.bincount(index + BINS // 2, minlength=BINS)

    def _widen(self) -> None:
        half = BINS // 2
        while not (-half * self.width <= self.low and self.high < half * self.width):
            if not self.counts.any():  # nothing to merge yet: go there at once
                self.width = max(self.width, 2.0 ** (np.floor(np.log2(self.peak / half)) - 1))
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[half // 2 : half // 2 + half] = pairs
            self.width *= 2


def propose_range(statistics: Statistics, observer: Observer, spec: QuantSpec) -> tuple[float, float]:
    """The range to quantize: all of it, all but both `TAIL`s, or the one with the least mean squared error."""
    if observer == "minmax" or statistics.low == statistics.high:
        return statistics.low, statistics.high
    return _percentile(statistics) if observer == "percentile" else _least_squares(statistics, spec)


def _percentile(statistics: Statistics) -> tuple[float, float]:
    total = np.cumsum(statistics.counts)
    first = int(np.searchsorted(total, TAIL * total[-1], side="right"))
    last = int(np.searchsorted(total, (1 - TAIL) * total[-1], side="left"))
    edge = -BINS // 2
    return (
        max(statistics.low, (first + edge) * statistics.width),
        min(statistics.high, (last + 1 + edge) * statistics.width),
    )


def _least_squares(statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
    """Shrink both ends alike, to 1, 0.99, ... 0.2 of the full range, and take the least sum over the histogram of
    ``count * (x - dequantize(quantize(x)))**2``, with x the middle of the bin.
    """
    bins = np.flatnonzero(statistics.counts)
    x = (bins + 0.5 - BINS // 2) * statistics.width
    counts = statistics.counts[bins].astype(np.float64)
    best, least = (statistics.low, statistics.high), np.inf
    for share in np.linspace(1.0, 0.2, 81):
        low, high = share * statistics.low, share * statistics.high
        scale, zero = (float(p) for p in scale_and_zero_point(low, high, spec))
        back = (np.clip(np.rint(x / scale) + zero, spec.lowest, spec.highest) - zero) * scale
        error = float(counts @ (x - back) ** 2)
        if error < least:
            best, least = (low, high), error
    return best
