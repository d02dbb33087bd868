"""Of one value, or of several of the same shape."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.lowering.decompose.write import cast, writer

D = ir.DataType
Results = list[ir.Value | None] | None


def _sinh(node: ir.Node) -> Results:
    """``(e^x - e^-x) / 2``; near zero its series, ``x (1 + x^2/6 (1 + x^2/20 (1 + x^2/42)))``."""
    do, x = writer(node), node.inputs[0]
    far = do("Mul", do("Sub", do("Exp", x), do("Exp", do("Neg", x))), 0.5)
    square = do("Mul", x, x)
    series = do("Add", do("Mul", square, 1 / 42), 1.0)
    for factor in (20.0, 6.0):
        series = do("Add", do("Mul", do("Mul", square, 1 / factor), series), 1.0)
    return [do("Where", do("Less", do("Abs", x), 0.5), do("Mul", x, series), far)]


def _cosh(node: ir.Node) -> Results:
    """``(e^x + e^-x) / 2``."""
    do, x = writer(node), node.inputs[0]
    return [do("Mul", do("Add", do("Exp", x), do("Exp", do("Neg", x))), 0.5)]


def _is_inf(node: ir.Node) -> Results:
    """Of one sign only: infinite and of that sign."""
    low, high = (node.attributes.get_int(f"detect_{sign}", 1) for sign in ("negative", "positive"))
    if low and high:
        return None
    do, x = writer(node), node.inputs[0]
    if not low and not high:
        return [do("And", do("IsInf", x), np.array(False))]
    return [do("And", do("IsInf", x), do("Less" if low else "Greater", x, 0.0))]


def _pow(node: ir.Node) -> Results:
    """Of integers, or with an exponent of another type: in double precision, which holds integers to 2^53."""
    x, y = node.inputs
    if x is None or y is None or x.dtype is None or y.dtype is None:
        return None
    if x.dtype.is_floating_point() and x.dtype == y.dtype:
        return None
    do = writer(node)
    if x.dtype.is_floating_point():
        return [do("Pow", x, cast(do, y, x.dtype))]
    result = do("Pow", cast(do, x, D.DOUBLE), cast(do, y, D.DOUBLE))
    return [cast(do, result, x.dtype)]


def _shift(node: ir.Node) -> Results:
    """By any amount: nothing is left of a number shifted by its whole width or more."""
    x, by = node.inputs
    if x is None or by is None or x.dtype is None or constant_array(by) is not None or x.dtype.is_signed():
        return None
    do, bits = writer(node), 8 * x.dtype.itemsize
    right = str(node.attributes.get_string("direction")) == "RIGHT"
    limited = do("Min", by, bits - 1)
    power = cast(do, do("Pow", np.array(2.0), cast(do, limited, D.DOUBLE)), x.dtype)
    shifted = do("Div" if right else "Mul", x, power)
    return [do("Where", do("Less", by, bits), shifted, 0)]


def _lp_norm(node: ir.Node) -> Results:
    """``x / ||x||_p`` along an axis, zero where the norm is."""
    do, x, p = writer(node), node.inputs[0], node.attributes.get_int("p", 2)
    if p not in (1, 2):
        return None
    norm = do(f"ReduceL{p}", x, [node.attributes.get_int("axis", -1)], keepdims=1)
    none = do("Equal", norm, 0.0)
    return [do("Where", none, 0.0, do("Div", x, do("Where", none, 1.0, norm)))]


def _mod(node: ir.Node) -> Results:
    """Of floats: ``x - y trunc(x / y)`` in double precision, exact for quotients below 2^29 of float32.

    That is what `fmod` asks for; without it, which opset 28 allows for floats, the node is refused.
    """
    x, y = node.inputs
    if not node.attributes.get_int("fmod", 0):
        return None
    if x is None or y is None or x.dtype is None or not x.dtype.is_floating_point() or x.dtype == D.BFLOAT16:
        return None
    do = writer(node)
    a, b = cast(do, x, D.DOUBLE), cast(do, y, D.DOUBLE)
    quotient = do("Floor", do("Div", do("Abs", a), do("Abs", b)))
    rest = do("Sub", do("Abs", a), do("Mul", quotient, do("Abs", b)))
    signed = do("Where", do("Less", a, np.array(0.0)), do("Neg", rest), rest)
    return [cast(do, signed, x.dtype)]


def _cast_like(node: ir.Node) -> Results:
    """A cast to the other's type; ONNX's definition of it forgets `saturate`."""
    like = node.inputs[1]
    if like is None or like.dtype is None:
        return None
    saturate = node.attributes.get_int("saturate", 1)
    extra = {} if saturate else {"saturate": 0}
    result = writer(node)("Cast", node.inputs[0], to=int(like.dtype), **extra)
    result.dtype = like.dtype
    return [result]


REWRITES = {
    "CastLike": _cast_like,
    "Sinh": _sinh,
    "Cosh": _cosh,
    "IsInf": _is_inf,
    "Pow": _pow,
    "BitShift": _shift,
    "LpNormalization": _lp_norm,
    "Mod": _mod,
}
