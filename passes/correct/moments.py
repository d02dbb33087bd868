"""Mean and deviation per channel over batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def moments(arrays: Iterable[Array], axis: int) -> tuple[Array, Array]:
    """Mean and standard deviation along `axis` of all the arrays together, in float64."""
    return from_sums(sum((sums(array, axis) for array in arrays), np.zeros(())))


def sums(array: Array, axis: int) -> Array:
    """Count, sum and sum of squares per channel, [3, channels]; those of batches add up."""
    rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]).astype(np.float64)
    return np.stack([np.full(rows.shape[1], len(rows), np.float64), rows.sum(axis=0), (rows**2).sum(axis=0)])


def from_sums(total: Array) -> tuple[Array, Array]:
    """Mean and standard deviation from what `sums` gives."""
    count, first, second = total
    mean = first / np.maximum(count, 1)
    return mean, np.sqrt(np.maximum(second / np.maximum(count, 1) - mean**2, 0.0))
