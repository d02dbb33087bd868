"""Pictures as numpy arrays: what the image models' input preparations share."""

from __future__ import annotations

import numpy as np

from graphopt.models.base import Array


def resize(image: Array, height: int, width: int) -> Array:
    """`image` (H, W) or (H, W, C) as (height, width[, C]) float32, bilinear at pixel centres.

    ``source = (target + 0.5) * H / height - 0.5``, clamped to the border: no antialiasing, as in the OpenCV
    call that the models here were trained and are served with.
    """
    rows = _blend(image.shape[0], height)
    columns = _blend(image.shape[1], width)
    return np.einsum("yh,hw...,xw->yx...", rows, image.astype(np.float32), columns, optimize=True)


def _blend(source: int, target: int) -> Array:
    """The (target, source) matrix of bilinear weights along one axis."""
    at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, source - 1)
    weights = np.zeros((target, source), np.float32)
    np.add.at(weights, (np.arange(target), low), 1 - (at - low))
    np.add.at(weights, (np.arange(target), high), at - low)
    return weights


def blur(image: Array, times: int) -> Array:
    """`image` (H, W) smoothed by the kernel [1 2 1]/4 along both axes, `times` over; the border repeats."""
    for _ in range(times):
        padded = np.pad(image, 1, mode="edge")
        rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
        image = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    return image


def planes(image: Array) -> Array:
    """A grey `image` (H, W) in 0..255 as the three planes (3, H, W) float32 in -1..1 that PP-OCR takes."""
    return np.repeat((image.astype(np.float32) / 127.5 - 1)[None], 3, axis=0)
