"""Integer semantics of requantisation: how an int32 accumulator becomes an 8-bit value.

With per-channel scales s_x (input), s_w (weight), s_y (output) and the multiplier m = s_x * s_w / s_y::

    y = clamp(round((acc + bias) * m) + zero, low, high)

`acc + bias` wraps around in int32. Two ways to round, named by the machine's `requantise`:

* ``float32``: that of `graphopt.targets.integer.reference`: ``acc + bias`` is converted to float32 (nearest even),
  multiplied by float32 m, rounded to the nearest integer, halves to even. This equals onnxruntime's QLinearConv of int8
  by int8 bit for bit; m is computed in float32 as ``(s_x * s_w) / s_y``, in that order.
* ``fixed31``: m = M * 2^-shift with the integer M in [2^30, 2^31); the result is
  ``((acc + bias) * M + 2^(shift-1)) >> shift`` in int64: halves round up. Differs from ``float32`` by at most 1.

The other operators round likewise. With a, b less their zero points::

    float32   add  rint(float32(a) * m_a + float32(b) * m_b)         each product rounded, then the sum
              mul  rint((float32(a) * m_a) * (float32(b) * m_b))
              mean rint(float32(sum) * m / float32(count))
    fixed31   add  (a * M_a + b * M_b + half) >> shift     mul  (a * b * M + half) >> shift     mean  m / count for m
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from graphopt.targets.integer import reference

Array = np.ndarray[Any, Any]
Mode = Literal["float32", "fixed31"]
RECORD = np.dtype([("bias", "<i4"), ("multiplier", "<u4"), ("shift", "<i4")])
MAX_SHIFT = 62


def pack_parameters(bias: Array, multiplier: Array, mode: Mode) -> Array:
    """Records (`RECORD`) of int32 `bias` and float32 `multiplier`, both of shape (channels,).

    Raises:
        ValueError: a multiplier is not positive and finite, or is 2^30 or more, which no shift can express.
    """
    if not np.all(np.isfinite(multiplier)) or np.any(multiplier <= 0) or np.any(multiplier >= 2.0**30):
        raise ValueError("a requantisation multiplier is not in (0, 2^30)")
    records = np.zeros(len(bias), RECORD)
    records["bias"] = bias
    if mode == "float32":
        records["multiplier"] = multiplier.astype(np.float32).view(np.uint32)
        return records
    mantissa, exponent = np.frexp(multiplier.astype(np.float64))
    integer, shift = np.rint(mantissa * 2.0**31).astype(np.int64), 31 - exponent.astype(np.int64)
    full = integer == 1 << 31  # rounding carried into the next power of two
    integer, shift = np.where(full, 1 << 30, integer), np.where(full, shift - 1, shift)
    excess = np.maximum(shift - MAX_SHIFT, 0)  # so small that the result is 0 for nearly every accumulator
    records["multiplier"] = integer >> np.minimum(excess, 31)
    records["shift"] = shift - excess
    return records


def pack_scale(m: float | np.float32, mode: Mode) -> tuple[int, int]:
    """One multiplier as a word's 4 bytes and shift. Raises `ValueError` as `pack_parameters` does."""
    record = pack_parameters(np.zeros(1, np.int32), np.array([m], np.float32), mode)[0]
    return int(record["multiplier"]), int(record["shift"])


def pack_pair(a: np.float32, b: np.float32, mode: Mode) -> tuple[int, int, int]:
    """Two multipliers of an addition and their common shift. Raises `ValueError` as `pack_parameters` does."""
    (a_bits, a_shift), (b_bits, b_shift) = pack_scale(a, mode), pack_scale(b, mode)
    shift = min(a_shift, b_shift)
    if mode == "float32":
        return a_bits, b_bits, 0
    return int(np.rint(float(a) * 2.0**shift)), int(np.rint(float(b) * 2.0**shift)), shift


def pack_product(a: np.float32, b: np.float32, mode: Mode) -> tuple[int, int, int]:
    """Two multipliers of a product, and its shift; `fixed31` has one for both."""
    if mode == "float32":
        return pack_scale(a, mode)[0], pack_scale(b, mode)[0], 0
    m, shift = pack_scale(float(a) * float(b), mode)
    return m, 1, shift


def pack_mean(m: float | np.float32, count: int, mode: Mode) -> tuple[int, int]:
    """The multiplier of a sum of `count` values; `fixed31` divides by the count with it."""
    return pack_scale(m if mode == "float32" else float(m) / count, mode)


def as_float(bits: int) -> np.float32:
    """The float32 of a word's 4 bytes."""
    return np.uint32(bits).view(np.float32)


def add(a: Array, b: Array, scales: tuple[int, int, int], mode: Mode) -> Array:
    """Sum of `a` and `b`, float32 integers less their zero points, in steps of the result, as float."""
    if mode == "float32":
        total = a * as_float(scales[0])
        total += b * as_float(scales[1])
        return np.rint(total, out=total)
    half, shift = np.int64(1) << np.int64(scales[2] - 1), np.int64(scales[2])
    wide = a.astype(np.int64) * scales[0] + b.astype(np.int64) * scales[1]
    return ((wide + half) >> shift).astype(np.float32)


def mul(a: Array, b: Array, scales: tuple[int, int, int], mode: Mode) -> Array:
    """Product of `a` and `b`, float32 integers less their zero points, in steps of the result, as float."""
    if mode == "float32":
        total = a * as_float(scales[0])
        total = total * (b * as_float(scales[1]))
        return np.rint(total, out=total)
    return rescale((a * b).astype(np.int64), scales[0], scales[2])


def mean(total: Array, count: int, scale: int, shift: int, mode: Mode) -> Array:
    """A sum of `count` values in steps of the result, as float."""
    if mode == "float32":
        scaled = total.astype(np.float32)
        scaled *= as_float(scale)
        scaled /= np.float32(count)
        return np.rint(scaled, out=scaled)
    return rescale(total.astype(np.int64), scale, shift)


def rescale(wide: Array, scale: int, shift: int) -> Array:
    """``(wide * scale + half) >> shift``: `fixed31`."""
    return ((wide * np.int64(scale) + (np.int64(1) << np.int64(shift - 1))) >> np.int64(shift)).astype(np.float32)


def requantise(acc: Array, records: Array, mode: Mode, zero: int, low: int, high: int) -> Array:
    """int32 `acc` of shape (channels, positions) to int32 values in [low, high]."""
    total = acc + records["bias"][:, None]
    if mode == "float32":
        m = np.ascontiguousarray(records["multiplier"]).view(np.float32)[:, None]
        return reference.requantise(total, m, zero, low, high)
    shift = records["shift"].astype(np.int64)[:, None]
    product = total.astype(np.int64) * records["multiplier"].astype(np.int64)[:, None]
    rounded = (product + (np.int64(1) << (shift - 1))) >> shift
    return np.clip(rounded + zero, low, high).astype(np.int32)
