"""What calibration remembers of a tensor, in constant memory, and the range it proposes from that.

`minmax`: all that was seen. `moving-average`: of the batches' minima and maxima, so that it depends on their order.
`percentile`: without the outermost `TAIL` at each end. `mse`: with the least mean squared error. `entropy`: with the
least Kullback-Leibler divergence between the values and their quantized form (Migacz, 8-bit Inference with
TensorRT, 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt.passes.quant.arithmetic import dequantize, quantize, scale_and_zero_point
from graphopt.passes.quant.spec import QuantSpec

Array = np.ndarray[Any, Any]

BINS = 1 << 14
"""Bins of a histogram, half of them for each sign."""
TAIL = 1e-4
"""Fraction of the values that the percentile observer leaves outside, at each end."""
NEWEST = 0.1
"""Weight of the newest batch in a moving average."""
_CHUNK = 1 << 20


class Statistics:
    """Minimum, maximum and a histogram of everything seen; the order and size of the batches don't matter.

    Bin i of the histogram covers ``[(i - BINS/2) * width, (i + 1 - BINS/2) * width)``. `width` is a power of two
    that doubles, merging neighbours, when a value lies outside; so the result depends on the values alone.
    `average_low` and `average_high` are the moving averages of the batches' extremes.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.average_low, self.average_high = np.nan, np.nan
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
        low, high = float(array.min()), float(array.max())
        newest = NEWEST if self.seen else 1.0
        self.average_low = low if newest == 1.0 else (1 - newest) * self.average_low + newest * low
        self.average_high = high if newest == 1.0 else (1 - newest) * self.average_high + newest * high
        self.low = float(np.minimum(self.low, low))  # NaN stays
        self.high = float(np.maximum(self.high, high))
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


def propose_range(statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
    """The range to quantize, by `spec.observer`."""
    if spec.observer == "minmax" or statistics.low == statistics.high:
        return statistics.low, statistics.high
    match spec.observer:
        case "moving-average":
            return statistics.average_low, statistics.average_high
        case "percentile":
            return _percentile(statistics)
        case "entropy":
            return _best_share(statistics, spec, _divergence)
        case _:
            return _best_share(statistics, spec, _squared_error)


def _percentile(statistics: Statistics) -> tuple[float, float]:
    total = np.cumsum(statistics.counts)
    first = int(np.searchsorted(total, TAIL * total[-1], side="right"))
    last = int(np.searchsorted(total, (1 - TAIL) * total[-1], side="left"))
    edge = -BINS // 2
    return (
        max(statistics.low, (first + edge) * statistics.width),
        min(statistics.high, (last + 1 + edge) * statistics.width),
    )


def _best_share(
    statistics: Statistics, spec: QuantSpec, loss: Callable[[Array, Array, Array, float, float], float]
) -> tuple[float, float]:
    """Shrink both ends alike, to 1, 0.99, ... 0.2 of the full range, and take the one with the least loss.

    `loss` takes the middles of the bins, their counts, the quantized middles, and the range.
    """
    bins = np.flatnonzero(statistics.counts)
    x = (bins + 0.5 - BINS // 2) * statistics.width
    counts = statistics.counts[bins].astype(np.float64)
    best, least = (statistics.low, statistics.high), np.inf
    for share in np.linspace(1.0, 0.2, 81):
        low, high = share * statistics.low, share * statistics.high
        scale, zero = scale_and_zero_point(low, high, spec)
        error = loss(x, counts, dequantize(quantize(x, scale, zero, spec), scale, zero), low, high)
        if error < least:
            best, least = (low, high), error
    return best


def _squared_error(x: Array, counts: Array, back: Array, low: float, high: float) -> float:
    """The sum of ``count * (x - back)**2``."""
    return float(counts @ (x - back) ** 2)


def _divergence(x: Array, counts: Array, back: Array, low: float, high: float) -> float:
    """``sum P log(P / Q)``: P the histogram with what lies outside moved to the outermost bins inside; Q the inner
    histogram, each level's count spread evenly over the level's bins that are not empty. The bin at zero is left out:
    zero is exact in any range, and after a Relu it would outweigh all else.
    """
    counts = np.where(x == x[np.argmin(np.abs(x))], 0.0, counts) if len(x) > 1 else counts
    inside = np.flatnonzero((x >= low) & (x <= high))
    if not inside.size:
        return np.inf
    first, last = inside[0], inside[-1] + 1
    _, level = np.unique(back[first:last], return_inverse=True)
    q = (np.bincount(level, counts[first:last]) / np.bincount(level))[level]
    p = counts[first:last].copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    if not q.any():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    return float(p[p > 0] @ np.log(p[p > 0] / q[p > 0]))
