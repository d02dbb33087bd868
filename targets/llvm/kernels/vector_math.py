"""exp, sigmoid, tanh on whole vectors: LLVM would call the C library once for each element.

exp after Cephes (S. Moshier, expf): ``x = n ln2 + r``, ``|r| <= ln2 / 2``, a polynomial of degree 5 for e^r, and 2^n
put into the exponent bits. Relative error below 2e-7 over the range of float32; results below 2^-126 become 2^-126.
"""

from __future__ import annotations

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, splat

_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOWEST, _HIGHEST = -87.33654, 88.37626


def exp(x: Expr, lanes: int) -> Expr:
    """e^x; x is kept within the range in which the result is a normal float32."""
    x = tirx.Min(tirx.Max(x, splat(_LOWEST, lanes)), splat(_HIGHEST, lanes))
    n = _floor(x * splat(1.44269504088896341, lanes) + splat(0.5, lanes), lanes)
    r = x - n * splat(_LN2_HIGH, lanes) - n * splat(_LN2_LOW, lanes)
    p = splat(_POLYNOMIAL[0], lanes)
    for c in _POLYNOMIAL[1:]:
        p = p * r + splat(c, lanes)
    value = p * r * r + r + splat(1.0, lanes)
    bias: Expr = tirx.const(127, "int32")
    bits = tirx.Cast(_of("int32", lanes), n) + splat(bias, lanes)
    scale = tirx.call_intrin(_of("float32", lanes), "tirx.reinterpret", bits << tirx.const(23, "int32"))
    return value * scale


def sigmoid(x: Expr, lanes: int) -> Expr:
    """1 / (1 + e^-x)."""
    return splat(1.0, lanes) / (splat(1.0, lanes) + exp(splat(0.0, lanes) - x, lanes))


def tanh(x: Expr, lanes: int) -> Expr:
    """2 sigmoid(2x) - 1: absolute error below 3e-7 (relative to x it grows as x goes to 0)."""
    return splat(2.0, lanes) * sigmoid(splat(2.0, lanes) * x, lanes) - splat(1.0, lanes)


def _floor(x: Expr, lanes: int) -> Expr:
    return tirx.call_llvm_pure_intrin(_of("float32", lanes), "llvm.floor", x)


def _of(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype
