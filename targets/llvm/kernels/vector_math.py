"""exp, erf, sigmoid, tanh on whole vectors: LLVM would call the C library once for each element.

exp after Cephes (S. Moshier, expf): ``x = n ln2 + r``, ``|r| <= ln2 / 2``, a polynomial of degree 5 for e^r, and 2^n
put into the exponent bits. Relative error below 2e-7 over the range of float32; results below 2^-126 become 2^-126.

erf after Eigen (generic_fast_erf_float): x P(x^2) / Q(x^2), degrees 6 and 4, for x within [-4, 4], where it reaches 1.

tanh after Eigen (generic_fast_tanh_float): likewise, within [-7.9, 7.9].
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, named, splat

_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOWEST, _HIGHEST = -87.33654, 88.37626
_ERF_P = (
    *(-2.72614225801306e-10, 2.77068142495902e-8, -2.10102402082508e-6, -5.69250639462346e-5),
    *(-7.34990630326855e-4, -2.95459980854025e-3, -1.60960333262415e-2),
)
_ERF_Q = (-1.45660718464996e-5, -2.13374055278905e-4, -1.68282697438203e-3, -7.37332916720468e-3, -1.42647390514189e-2)
_TANH_P = (
    *(-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08),
    *(1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
)
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_TANH_ONE = 7.90531110763549805


def exp(x: Expr, lanes: int) -> Expr:
    """e^x; x is kept within the range in which the result is a normal float32."""
    x = named(tirx.Min(tirx.Max(x, splat(_LOWEST, lanes)), splat(_HIGHEST, lanes)))
    n = named(_floor(x * splat(1.44269504088896341, lanes) + splat(0.5, lanes), lanes))
    r = named(x - n * splat(_LN2_HIGH, lanes) - n * splat(_LN2_LOW, lanes))
    p = _horner(_POLYNOMIAL, r, lanes)
    value = p * r * r + r + splat(1.0, lanes)
    bias: Expr = tirx.const(127, "int32")
    bits = tirx.Cast(_of("int32", lanes), n) + splat(bias, lanes)
    scale = tirx.call_intrin(_of("float32", lanes), "tirx.reinterpret", bits << tirx.const(23, "int32"))
    return value * scale


def erf(x: Expr, lanes: int) -> Expr:
    """The error function: absolute error below 5e-7."""
    x = named(tirx.Min(tirx.Max(x, splat(-4.0, lanes)), splat(4.0, lanes)))
    square = named(x * x)
    return x * _horner(_ERF_P, square, lanes) / _horner(_ERF_Q, square, lanes)


def sigmoid(x: Expr, lanes: int) -> Expr:
    """1 / (1 + e^-x)."""
    return splat(1.0, lanes) / (splat(1.0, lanes) + exp(splat(0.0, lanes) - x, lanes))


def tanh(x: Expr, lanes: int) -> Expr:
    """The hyperbolic tangent: relative error below 1e-6."""
    x = named(tirx.Min(tirx.Max(x, splat(-_TANH_ONE, lanes)), splat(_TANH_ONE, lanes)))
    square = named(x * x)
    return x * _horner(_TANH_P, square, lanes) / _horner(_TANH_Q, square, lanes)


def _horner(coefficients: Sequence[float], x: Expr, lanes: int) -> Expr:
    """The polynomial with `coefficients`, highest power first."""
    p = splat(coefficients[0], lanes)
    for c in coefficients[1:]:
        p = p * x + splat(c, lanes)
    return p


def _floor(x: Expr, lanes: int) -> Expr:
    return tirx.call_llvm_pure_intrin(_of("float32", lanes), "llvm.floor", x)


def _of(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype
