"""Integer semantics of requantisation: how an int32 accumulator becomes an 8-bit value.

With per-channel scales s_x (input), s_w (weight), s_y (output) and the multiplier m = s_x * s_w / s_y::

    y = clamp(round((acc + bias) * m) + zero, low, high)

`acc + bias` wraps around in int32. Two ways to round, named by the machine's `requantise`:

* ``float32``: that of `graphopt.targets.integer.reference`: ``acc + bias`` is converted to float32 (nearest even),
  multiplied by float32 m, rounded to the nearest integer, halves to even. This equals onnxruntime's QLinearConv of int8
  by int8 bit for bit; m is computed in float32 as ``(s_x * s_w) / s_y``, in that order.
* ``fixed31``: m = M * 2^-shift with the integer M in [2^30, 2^31); the result is
  ``((acc + bias) * M + 2^(shift-1)) >> shift`` in int64: halves round up. Differs from ``float32`` by at most 1.
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
