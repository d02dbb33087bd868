"""8-bit values in float kernels: dequantized when they are read, quantized when they are stored.

This is the arithmetic of DequantizeLinear and QuantizeLinear in float32, bit for bit.
"""

from __future__ import annotations

import dataclasses

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, Isa, named, splat
from graphopt.targets.llvm.kernels.requantise import Range, dequantize, inverse, unfused


@dataclasses.dataclass(frozen=True)
class Grid:
    """What uint8 values stand for: ``(q - zero) * scale``."""

    scale: float
    zero: int

    def real(self, q: Expr, lanes: int) -> Expr:
        """The float32 values of `lanes` uint8 ones."""
        return unfused(dequantize(q, self.zero, self.scale, lanes), lanes)

    def nearest(self, x: Expr, lanes: int, isa: Isa) -> Expr:
        """The uint8 values nearest to float32 ones: ``saturate(rint(x / scale) + zero)``."""
        return Range(self.zero).round(self._steps(named(unfused(x, lanes)), lanes, isa), lanes)

    def _steps(self, x: Expr, lanes: int, isa: Isa) -> Expr:
        """``x / scale``. With fused multiply-adds a product with ``1 / scale`` and its remainder give the same number

        (P. Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990) several times
        faster than a division of a large vector. Kept near the range first, or infinities had no remainder.
        """
        if not isa.features & {"fma", "neon"}:
            return x / splat(self.scale, lanes)
        scale, inverse_ = splat(self.scale, lanes), splat(inverse(self.scale), lanes)
        low, high = splat(-1.0 - self.zero, lanes), splat(256.0 - self.zero, lanes)
        near = named(tirx.Min(tirx.Max(x * inverse_, low), high))
        rest = named(_fma(splat(0.0, lanes) - near, scale, x, lanes))
        return _fma(rest, inverse_, near, lanes)


def _fma(a: Expr, b: Expr, c: Expr, lanes: int) -> Expr:
    """``a * b + c``, rounded once."""
    return tirx.call_llvm_pure_intrin(f"float32x{lanes}" if lanes > 1 else "float32", "llvm.fma", a, b, c)
