"""Which weights are the smallest: exact selection by magnitude, in linear time, over one array or many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_CHUNK = 1 << 22


def smallest(arrays: Sequence[Array], sparsity: float) -> list[Array]:
    """Boolean masks, one per array: True where the weight is among the smallest of all arrays together.

    Exactly ``k = round(sparsity * n)`` of the n weights are chosen, but never all of an array: its largest
    stays, so k is at most n minus the number of arrays. Weights that equal the k-th smallest magnitude are
    chosen evenly over their places, so that no channel goes for its position: the e-th of E, to choose c of
    them, iff ``floor((e+1)*c/E) > floor(e*c/E)``. Arrays are finite and not empty. Time O(n), 4n bytes beside
    the masks; float64 weights are compared as float32.
    """
    total = sum(array.size for array in arrays)
    k = min(round(sparsity * total), total - len(arrays))
    if k <= 0:
        return [np.zeros(array.shape, bool) for array in arrays]
    every = np.concatenate([_magnitudes(array) for array in arrays])
    every.partition(k - 1)
    threshold = every[k - 1]
    chosen = k - int(np.count_nonzero(every < threshold))
    equal = int(np.count_nonzero(every == threshold))
    del every
    masks: list[Array] = []
    seen = 0
    for array in arrays:
        magnitudes = _magnitudes(array)
        mask = magnitudes < threshold
        at = np.flatnonzero(magnitudes == threshold)
        e = np.arange(seen, seen + len(at))
        mask[at[(e + 1) * chosen // equal > e * chosen // equal]] = True
        seen += len(at)
        masks.append(mask.reshape(array.shape))
    return masks


def _magnitudes(array: Array) -> Array:
    """``|array|`` as flat float32, with infinity in place of the largest (the first of equals): it stays."""
    magnitudes = np.abs(array.astype(np.float32, copy=False)).ravel()
    magnitudes[np.argmax(magnitudes)] = np.inf
    return magnitudes


def smallest_of_groups(array: Array, axis: int, keep: int, group: int) -> Array:
    """Boolean mask: True for all but the `keep` largest of each `group` neighbours along `axis` (N:M sparsity).

    Of equal magnitudes the first stays. The axis' length must be a multiple of `group`.
    """
    moved = np.moveaxis(array, axis, -1)
    rows = moved.reshape(-1, group)
    mask = np.ones(rows.shape, bool)
    step = max(_CHUNK // group, 1)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        order = np.argsort(-np.abs(rows[part].astype(np.float32)), axis=1, kind="stable")
        np.put_along_axis(mask[part], order[:, :keep], False, 1)
    return np.moveaxis(mask.reshape(moved.shape), -1, axis)
