"""Reference semantics of quantized operators, in numpy: what integer kernels must compute, bit for bit.

An 8-bit value q with scale s and zero point z stands for ``(q - z) * s``. A quantized operator accumulates in int32,
which wraps around, and turns the result into 8 bits again::

    acc = sum (x_q - z_x) * w_q + b_q
    m   = float32(float32(s_x * s_w) / s_y)                               one for each channel, or one in all
    y   = clamp(rint(float32(acc) * m) + z_y, low, high)

`rint` rounds halves to even; conversion of `acc` to float32 does too. Relu and Clip are tighter `low` and `high`. With
the 8-bit residual r of an addition before the activation, ``m_r = float32(s_r / s_y)``::

    y   = clamp(rint(float32(acc) * m + float32(r - z_r) * m_r) + z_y, low, high)

where each product is rounded to float32 before the sum is. The unfused float32 arithmetic of the same QuantizeLinear
and DequantizeLinear operators differs from this by at most one step of y.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def multiplier(x_scale: Array, w_scale: Array, y_scale: Array) -> Array:
    """``(s_x * s_w) / s_y`` in float32, rounded twice in that order."""
    one, two, three = (np.asarray(s, np.float32) for s in (x_scale, w_scale, y_scale))
    return (one * two) / three


def requantise(
    acc: Array, m: Array | np.float32, zero: int, low: int, high: int, residual: Array | None = None
) -> Array:
    """int32 `acc` to int32 values in [low, high], which lies in [0, 255] or [-128, 127]; `m` broadcasts against `acc`.

    `residual`: float32 ``(r - z_r) * m_r`` of the shape of `acc`.
    """
    scaled = acc.astype(np.float32)
    scaled *= m
    if residual is not None:
        scaled += residual
    np.rint(scaled, out=scaled)
    # |low - zero|, |high - zero| <= 383: exact in float32, and clamping first keeps the cast in range.
    return np.clip(scaled, low - zero, high - zero, out=scaled).astype(np.int32) + zero


def total(terms: Sequence[Array], zero: int, low: int, high: int) -> Array:
    """``clamp(rint(sum of terms) + z, low, high)`` of float32 terms in steps of the result, as int32: additions."""
    steps = np.rint(np.add.reduce(list(terms), axis=0, dtype=np.float32))
    return np.clip(steps, low - zero, high - zero).astype(np.int32) + zero


def scaled(q: Array, zero: int, m: Array | np.float32) -> Array:
    """``float32(q - z) * m``: a residual in steps of the result, or with ``m = s`` what DequantizeLinear yields."""
    return (q.astype(np.int32) - zero).astype(np.float32) * np.asarray(m, np.float32)


def quantize(x: Array, scale: Array | np.float32, zero: int, low: int, high: int) -> Array:
    """``clamp(rint(x / s) + z, low, high)``: QuantizeLinear of float32 `x`, as int32."""
    with np.errstate(over="ignore"):
        steps = np.rint(x.astype(np.float32, copy=False) / np.asarray(scale, np.float32))
    return np.clip(steps + np.float32(zero), low, high).astype(np.int32)


def convolution(
    x: Array,
    zero: int,
    weight: Array,
    bias: Array | None,
    strides: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    group: int = 1,
) -> Array:
    """int32 accumulators (N, CO, OH, OW) of 8-bit `x` (N, CI, H, W), `weight` (CO, CI/group, KH, KW), and int32 `bias`.

    `pads`: top, left, bottom, right; what is padded counts as `zero`, so it adds nothing.
    """
    top, left, bottom, right = pads
    padded = np.pad(x.astype(np.int64) - zero, ((0, 0), (0, 0), (top, bottom), (left, right)))
    n, _, h, w = padded.shape
    co, each, kh, kw = weight.shape
    oh = (h - dilations[0] * (kh - 1) - 1) // strides[0] + 1
    ow = (w - dilations[1] * (kw - 1) - 1) // strides[1] + 1
    total = np.zeros((n, group, co // group, oh, ow), np.int64)
    for row in range(kh):
        for column in range(kw):
            y0, x0 = row * dilations[0], column * dilations[1]
            seen = padded[:, :, y0 : y0 + oh * strides[0] : strides[0], x0 : x0 + ow * strides[1] : strides[1]]
            seen = seen[:, :, :oh, :ow].reshape(n, group, each, oh, ow)
            taps = weight[:, :, row, column].astype(np.int64).reshape(group, co // group, each)
            total += np.einsum("ngchw,goc->ngohw", seen, taps)
    flat = total.reshape(n, co, oh, ow)
    if bias is not None:
        flat = flat + bias.astype(np.int64)[:, None, None]
    return flat.astype(np.int32)  # keeps the low 32 bits: wraps around


def average(
    x: Array,
    zero: int,
    m: float | np.float32,
    result: tuple[int, int, int] | None,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    count_padding: bool,
) -> Array:
    """Means of uint8 `x` (N, C, H, W) over windows: ``float32(sum (x - z)) * m / count``, each step in float32.

    With the (zero, low, high) of a `result`, in whose steps m is, that is rounded to integers, else float32.
    """
    top, left, bottom, right = pads
    around = ((0, 0), (0, 0), (top, bottom), (left, right))
    values = np.pad(x.astype(np.int32) - zero, around)
    inside = np.pad(np.ones_like(x, np.int32), around)
    views = [np.lib.stride_tricks.sliding_window_view(a, kernel, (2, 3)) for a in (values, inside)]
    total, count = (v[:, :, :: strides[0], :: strides[1]].sum(axis=(4, 5)) for v in views)
    over = np.full_like(count, kernel[0] * kernel[1]) if count_padding else count
    mean = total.astype(np.float32) * np.float32(m) / over.astype(np.float32)
    if result is None:
        return mean
    offset, low, high = result
    return np.clip(np.rint(mean), low - offset, high - offset).astype(np.int32) + offset
