"""From int32 accumulators to what is stored: see `graphopt.targets.integer.reference` for the formulas."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, Isa, load, named, splat
from graphopt.targets.llvm.kernels.epilogue import Epilogue

MAGIC = 12582912.0
"""1.5 * 2^23: a float32 sum with it is rounded to an integer, halves to even, that lies in its lowest bits."""


@dataclasses.dataclass(frozen=True)
class Range:
    """8-bit values: their zero point, and the least and the greatest."""

    zero: int
    low: int = 0
    high: int = 255

    def round(self, steps: Expr, lanes: int) -> Expr:
        """``clamp(rint(steps) + zero, low, high)`` as uint8; NaN becomes some value of the range."""
        low, high = float(self.low - self.zero), float(self.high - self.zero)
        inside = tirx.Min(tirx.Max(steps, splat(low, lanes)), splat(high, lanes))
        bits = tirx.reinterpret(_vector("int32", lanes), inside + splat(MAGIC, lanes))
        return tirx.Cast(_vector("uint8", lanes), bits + splat(self.zero, lanes, "int32"))

    def round_together(self, steps: list[Expr], lanes: int) -> Expr:
        """What `round` makes of two or four vectors of x86, side by side in one: packing saturates.

        A vector's quarters of 128 bits are packed with those of the others, and put in order at last.
        """
        high = splat(float(self.high - self.zero), lanes)
        inside = [tirx.Min(value, high) for value in steps]
        if self.low > 0:
            inside = [tirx.Max(value, splat(float(self.low - self.zero), lanes)) for value in inside]
        words = [_nearest(value, lanes) for value in inside]
        halves = [_pack("ssdw", a, b, lanes) for a, b in zip(words[::2], words[1::2], strict=True)]
        if self.zero:
            halves = [half + splat(self.zero, 2 * lanes, "int16") for half in halves]
        packed = tirx.reinterpret(f"int32x{lanes}", _pack("uswb", halves[0], halves[-1], lanes))
        order = [4 * quarter + vector for vector in range(len(steps)) for quarter in range(lanes // 4)]
        return tirx.reinterpret(f"uint8x{len(steps) * lanes}", _shuffle(packed, order))

    def kept(self, steps: Expr, lanes: int) -> Expr:
        """``clamp(rint(steps), low - zero, high - zero)`` as float32."""
        low, high = float(self.low - self.zero), float(self.high - self.zero)
        inside = tirx.Min(tirx.Max(steps, splat(low, lanes)), splat(high, lanes))
        return unfused(inside + splat(MAGIC, lanes), lanes) - splat(MAGIC, lanes)


@dataclasses.dataclass(frozen=True)
class Residual:
    """8-bit values that are added: ``(r - zero) * m``, m in steps of the result. Exact under `float32`.

    `inner`: what the accumulators become before the addition where they are 8 bits once more, and what a step of these
    is worth in steps of the result.
    """

    zero: int
    m: float
    inner: tuple[Range, float] | None = None


@dataclasses.dataclass(frozen=True)
class Finish:
    """``float32(acc) * m[channel]``, then one of

    - uint8: with the residual, clamped to `range`; no `formula`;
    - a float32 `formula`, which is stored as it is, or times ``1 / step`` and clamped to `range` (a division would take
      longer than a depthwise convolution).
    """

    range: Range | None
    residual: Residual | None = None
    formula: Epilogue = dataclasses.field(default_factory=Epilogue)
    step: float | None = None

    @property
    def dtype(self) -> str:
        """Of the result."""
        return "float32" if self.range is None else "uint8"

    @property
    def addend(self) -> str | None:
        """The type of the residual, if there is one."""
        if self.residual is not None:
            return "uint8"
        return "float32" if self.formula.residual else None

    def __call__(self, acc: Expr, m: Any, residual: Any, place: list[Expr], lanes: int) -> Expr:
        """What to store at `place`, whose last index is the channel."""
        value = self._value(acc, m, residual, place, lanes)
        return value if self.range is None else self.range.round(value, lanes)

    def together(self, accs: list[Expr], m: Any, residual: Any, place: list[Expr], lanes: int) -> Expr:
        """What to store for vectors side by side from `place` on: two or four, where `packs`."""
        assert self.range is not None
        places = [[*place[:-1], place[-1] + i * lanes] for i in range(len(accs))]
        values = [self._value(acc, m, residual, at, lanes) for acc, at in zip(accs, places, strict=True)]
        return self.range.round_together(values, lanes)

    def packs(self, isa: Isa) -> bool:
        """Whether results are bytes and the CPU packs them."""
        wide = {8: "avx2", 16: "avx512bw"}.get(isa.lanes)
        return self.range is not None and wide in isa.features

    def _value(self, acc: Expr, m: Any, residual: Any, place: list[Expr], lanes: int) -> Expr:
        """The result in float32, in steps of the bytes if it is to be bytes."""
        value = tirx.Cast(_vector("float32", lanes), acc) * load(m, [place[-1]], lanes)
        if self.residual is not None:
            value = self._add(value, load(residual, place, lanes), lanes)
        value = self.formula.finish(residual, value, place, lanes)
        return value if self.step is None else value * splat(inverse(self.step), lanes)

    def _add(self, value: Expr, r: Expr, lanes: int) -> Expr:
        assert self.residual is not None
        if self.residual.inner is not None:
            kept, worth = self.residual.inner
            value = kept.kept(named(value), lanes) * splat(np.float32(worth), lanes)
        return unfused(value, lanes) + unfused(dequantize(r, self.residual.zero, self.residual.m, lanes), lanes)


def inverse(step: float) -> float:
    """``1 / step`` in float32."""
    return float(np.float32(1) / np.float32(step))


def dequantize(q: Expr, zero: int, scale: float, lanes: int) -> Expr:
    """``float32(q - zero) * scale`` of uint8 vectors."""
    steps = tirx.Cast(_vector("int32", lanes), q) - splat(zero, lanes, "int32")
    return tirx.Cast(_vector("float32", lanes), steps) * splat(float(np.float32(scale)), lanes)


def as_float(q: Expr, lanes: int) -> Expr:
    """8-bit integers as float32."""
    return tirx.Cast(_vector("float32", lanes), tirx.Cast(_vector("int32", lanes), q))


def unfused(value: Expr, lanes: int) -> Expr:
    """`value` rounded to float32: a product that is not to become part of a fused multiply-add."""
    return tirx.call_llvm_pure_intrin(_vector("float32", lanes), "llvm.arithmetic.fence", value)


def _nearest(x: Expr, lanes: int) -> Expr:
    """int32, halves to even; what is too small becomes the least."""
    if lanes == 8:
        return tirx.call_llvm_pure_intrin("int32x8", "llvm.x86.avx.cvt.ps2dq.256", x)
    every = (
        splat(0, lanes, "int32"),
        tirx.const(-1, "int16"),
        tirx.const(4, "int32"),
    )  # the rounding of the CPU's mode
    return tirx.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.mask.cvtps2dq.512", x, *every)


def _pack(kind: str, a: Expr, b: Expr, lanes: int) -> Expr:
    """`vpackssdw` or `vpackuswb`."""
    name = f"llvm.x86.avx2.pack{kind}" if lanes == 8 else f"llvm.x86.avx512.pack{kind}.512"
    return tirx.call_llvm_pure_intrin(f"int16x{2 * lanes}" if kind == "ssdw" else f"int8x{4 * lanes}", name, a, b)


def _shuffle(vector: Expr, order: list[int]) -> Expr:
    return tirx.Shuffle([vector], [tirx.IntImm("int32", i) for i in order])


def _vector(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype
