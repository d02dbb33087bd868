"""TIR expressions of integers, evaluated by numpy for many values of their variables at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx import expr as tir

Array = np.ndarray[Any, Any]
Values = Mapping[Any, Array]


class Unknown(Exception):  # noqa: N818  # no error: what is asked has no answer here
    """The value depends on what is in memory, or on an operation that is not evaluated here."""


def is_a(value: Any, *kinds: Any) -> bool:
    """`isinstance`, for TVM's classes: what attributes they have, their Python sides don't say."""
    return isinstance(value, kinds)


def evaluate(expression: Any, values: Values) -> Array:
    """`expression` where its variables are `values`, arrays of one shape.

    Raises:
        Unknown: it reads memory, or has an operation or a variable that is not known.
    """
    if isinstance(expression, bool | int):
        return np.asarray(expression)
    if isinstance(expression, tirx.IntImm):
        return np.asarray(int(expression))
    if isinstance(expression, tirx.Var):
        if expression not in values:
            raise Unknown(str(expression))
        return values[expression]
    if is_a(expression, tir.Cast):
        value = evaluate(expression.value, values)
        return value != 0 if str(expression.ty.dtype) == "bool" else value
    if is_a(expression, tir.Not):
        return ~evaluate(expression.a, values).astype(bool)
    binary = _BINARY.get(type(expression))
    if binary is not None:
        with np.errstate(divide="ignore"):
            return binary(evaluate(expression.a, values), evaluate(expression.b, values))
    chosen = choice(expression)
    if chosen is not None:
        condition, yes, no = (evaluate(part, values) for part in chosen)
        return np.where(condition, yes, no)
    raise Unknown(type(expression).__name__)


def choice(expression: Any) -> tuple[Any, Any, Any] | None:
    """Condition, value where it holds and value where not, of an expression that is such a choice."""
    if isinstance(expression, tir.Select):
        return expression.condition, expression.true_value, expression.false_value
    if operation(expression) == "if_then_else":
        return tuple(expression.args)
    return None


def operation(expression: Any) -> str:
    """The name of the operator that a call calls, as ``tvm_storage_sync``; empty for what is no call."""
    name = getattr(getattr(expression, "op", None), "name", "")
    return str(name).rpartition(".")[2]


def _truncated(a: Array, b: Array) -> Array:
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


_BINARY: dict[type, Callable[[Array, Array], Array]] = {
    tir.Add: np.add,
    tir.Sub: np.subtract,
    tir.Mul: np.multiply,
    tir.FloorDiv: np.floor_divide,
    tir.FloorMod: np.mod,
    tir.Div: _truncated,
    tir.Mod: np.fmod,
    tir.Min: np.minimum,
    tir.Max: np.maximum,
    tir.EQ: np.equal,
    tir.NE: np.not_equal,
    tir.LT: np.less,
    tir.LE: np.less_equal,
    tir.GT: np.greater,
    tir.GE: np.greater_equal,
    tir.And: np.logical_and,
    tir.Or: np.logical_or,
    tir.LShift: np.left_shift,
    tir.RShift: np.right_shift,
    tir.BitwiseAnd: np.bitwise_and,
    tir.BitwiseOr: np.bitwise_or,
    tir.BitwiseXor: np.bitwise_xor,
}
