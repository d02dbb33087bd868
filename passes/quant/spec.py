"""`QuantSpec`: which integers a tensor is quantized to, and how its scale is chosen."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from graphopt.errors import UsageError


@dataclasses.dataclass(frozen=True)
class QuantSpec:
    """``q = saturate(round(x / scale) + zero_point)`` in `bits` bits of `dtype`.

    symmetric: zero_point is 0 and ``[-max, max]`` is covered; int8 then uses -127..127, never -128.
    bits: fewer than 8 leave head room in the same storage: with 7-bit weights the pairwise sums of
        uint8 x int8 products that x86 without VNNI forms in int16 can't saturate (2 * 255 * 63 < 2**15).
    power_of_two: scales are powers of two (``W_q = round(W * 2**p)``), so that requantisation is a shift.
    """

    dtype: Literal["int8", "uint8"]
    symmetric: bool
    bits: int = 8
    power_of_two: bool = False

    def __post_init__(self) -> None:
        if self.symmetric and self.dtype == "uint8":
            raise UsageError("a symmetric range needs signed integers: int8, not uint8.")
        if not 2 <= self.bits <= 8:
            raise UsageError(f"{self.dtype} holds 2 to 8 bits, not {self.bits}.")

    @property
    def lowest(self) -> int:
        """The smallest integer used."""
        if self.dtype == "uint8":
            return 0
        return -(2 ** (self.bits - 1)) + self.symmetric

    @property
    def highest(self) -> int:
        """The largest integer used."""
        return 2**self.bits - 1 if self.dtype == "uint8" else 2 ** (self.bits - 1) - 1

    @property
    def numpy(self) -> np.dtype[Any]:
        """The storage type."""
        return np.dtype(self.dtype)
