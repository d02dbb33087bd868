"""`QuantSpec`: which numbers a tensor is quantized to, and how its scale is chosen."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np

from graphopt.base import Context
from graphopt.errors import UsageError

Dtype: TypeAlias = Literal["int4", "uint4", "int8", "uint8", "int16", "uint16", "float8e4m3fn", "float8e5m2"]
Observer: TypeAlias = Literal["minmax", "moving-average", "percentile", "entropy", "mse"]
Granularity: TypeAlias = Literal["tensor", "channel", "block"]

_STORAGE: dict[str, tuple[Any, int]] = {
    "int4": (ml_dtypes.int4, 4),
    "uint4": (ml_dtypes.uint4, 4),
    "int8": (np.int8, 8),
    "uint8": (np.uint8, 8),
    "int16": (np.int16, 16),
    "uint16": (np.uint16, 16),
    "float8e4m3fn": (ml_dtypes.float8_e4m3fn, 8),
    "float8e5m2": (ml_dtypes.float8_e5m2, 8),
}


@dataclasses.dataclass(frozen=True)
class QuantSpec:
    """``q = saturate(round(x / scale) + zero_point)`` in `bits` bits of `dtype`.

    symmetric: zero_point is 0 and ``[-max, max]`` is covered; int8 then uses -127..127, never -128. A must for
        float8, whose rounding is that of the format, and impossible in unsigned integers.
    bits: fewer than the storage has leave head room: with 7-bit weights the pairwise sums of uint8 x int8
        products that x86 without VNNI forms in int16 can't saturate (2 * 255 * 63 < 2**15). None: all of them.
    power_of_two: scales are powers of two (``W_q = round(W * 2**p)``), so that requantisation is a shift.
    axis: one scale per index of this axis; None: one for the tensor.
    block: along `axis` one scale per `block` neighbours (the last may be fewer), at every index of the other axes.
    observer: how the range follows from what calibration saw; see `graphopt.passes.quant.observers`.
    """

    dtype: Dtype
    symmetric: bool
    bits: int | None = None
    power_of_two: bool = False
    axis: int | None = None
    block: int | None = None
    observer: Observer = "mse"

    def __post_init__(self) -> None:
        if self.dtype not in _STORAGE:
            raise UsageError(f"there is no quantized type {self.dtype!r}; there are {', '.join(_STORAGE)}.")
        if self.symmetric and self.dtype.startswith("uint"):
            raise UsageError(f"a symmetric range needs signed integers: {self.dtype[1:]}, not {self.dtype}.")
        if self.is_float and not self.symmetric:
            raise UsageError(f"{self.dtype} has no zero point: its range is symmetric.")
        width = _STORAGE[self.dtype][1]
        if self.bits is not None and (self.is_float or not 2 <= self.bits <= width):
            holds = f"exactly {width}" if self.is_float else f"2 to {width}"
            raise UsageError(f"{self.dtype} holds {holds} bits, not {self.bits}.")
        if self.block is not None and (self.axis is None or self.block < 2):
            raise UsageError(f"blocks lie along an axis and have 2 or more elements; axis {self.axis}, {self.block}.")

    @property
    def granularity(self) -> Granularity:
        """One scale for the tensor, for each channel, or for each block."""
        return "tensor" if self.axis is None else "channel" if self.block is None else "block"

    @property
    def is_float(self) -> bool:
        """A float8 format."""
        return self.dtype.startswith("float8")

    @property
    def lowest(self) -> int:
        """The smallest number used."""
        if self.is_float:
            return -self.highest
        if self.dtype.startswith("uint"):
            return 0
        return -(2 ** (self._width - 1)) + self.symmetric

    @property
    def highest(self) -> int:
        """The largest number used."""
        if self.is_float:
            return int(ml_dtypes.finfo(self.numpy).max)
        return 2**self._width - 1 if self.dtype.startswith("uint") else 2 ** (self._width - 1) - 1

    @property
    def numpy(self) -> np.dtype[Any]:
        """The storage type; int4 and float8 are those of ml_dtypes."""
        return np.dtype(_STORAGE[self.dtype][0])

    @property
    def opset(self) -> int:
        """The first opset of ONNX whose QuantizeLinear and DequantizeLinear know this."""
        if self.block is not None or self.dtype in ("int4", "uint4", "int16", "uint16"):
            return 21
        return 19 if self.is_float else 13

    @property
    def _width(self) -> int:
        return self.bits or _STORAGE[self.dtype][1]


def weight_bits_for(asked: int | None, context: Context) -> int:
    """The bits of int8 weights: those asked for, else those that the target multiplies fastest, else 8."""
    return asked or (8 if context.target is None else context.target.weight_bits())
