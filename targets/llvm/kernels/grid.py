"""8-bit values in float kernels: dequantized when they are read, quantized when they are stored.

This is the arithmetic of DequantizeLinear and QuantizeLinear in float32, bit for bit.
"""

from __future__ import annotations

import dataclasses

from graphopt.targets.llvm.kernels.emit import Expr, splat
from graphopt.targets.llvm.kernels.requantise import Range, dequantize, unfused


@dataclasses.dataclass(frozen=True)
class Grid:
    """What uint8 values stand for: ``(q - zero) * scale``."""

    scale: float
    zero: int

    def real(self, q: Expr, lanes: int) -> Expr:
        """The float32 values of `lanes` uint8 ones."""
        return unfused(dequantize(q, self.zero, self.scale, lanes), lanes)

    def nearest(self, x: Expr, lanes: int) -> Expr:
        """The uint8 values nearest to float32 ones: ``saturate(rint(x / scale) + zero)``."""
        return Range(self.zero).round(unfused(x, lanes) / splat(self.scale, lanes), lanes)
