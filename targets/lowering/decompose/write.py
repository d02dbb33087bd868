"""Writing operators in front of a node, with numbers and arrays as operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.targets.lowering.nodes import Attribute, constant, put

Operand = ir.Value | np.ndarray[Any, Any] | np.generic | int | float | None
Write = Callable[..., ir.Value]


def writer(at: ir.Node) -> Write:
    """``do(op, *operands, **attributes)`` puts an operator in front of `at` and gives its result.

    Numbers are of the type of the first input of `at`, lists of int64. Types of results are inferred later.
    """
    first = at.inputs[0] if at.inputs else None
    own = first.dtype.numpy() if first is not None and first.dtype is not None else np.dtype(np.float32)

    def operand(given: Any) -> ir.Value | None:
        if given is None or isinstance(given, ir.Value):
            return given
        if isinstance(given, list):
            return constant(at, "list", np.array(given, np.int64))
        array = np.array(given, own) if isinstance(given, (int, float)) else np.asarray(given)
        return constant(at, "number", array)

    def do(op: str, *operands: Operand | list[int], **attributes: Attribute) -> ir.Value:
        return put(at, op, [operand(o) for o in operands], attributes)

    return do


def cast(do: Write, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """`x` as `dtype`."""
    result = do("Cast", x, to=int(dtype))
    result.dtype = dtype
    return result


def sizes(value: ir.Value | None) -> list[int] | None:
    """The shape of `value` where it is known in full."""
    if value is None or value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return None
    return [int(dim) for dim in value.shape]  # pyright: ignore[reportArgumentType]
