"""Elementwise functions given as a list of steps, such as GELU the way exporters write it out."""

from __future__ import annotations

import dataclasses
from typing import TypeGuard

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, named, splat
from graphopt.targets.llvm.kernels.epilogue import Activation
from graphopt.targets.llvm.kernels.vector_math import erf, exp

SHORT = frozenset({"Add", "Sub", "Mul", "Max", "Min", "Neg", "Abs", "Square", "Cube"})
OPERATORS = SHORT | {"Div", "Reciprocal", "Sqrt", "Exp", "Erf"}


@dataclasses.dataclass(frozen=True)
class Ref:
    """The result of an earlier step; 0 is the function's argument."""

    number: int


@dataclasses.dataclass(frozen=True)
class Step:
    """One operator (ONNX's name, Square or Cube) or activation, applied to earlier results and constants."""

    operator: str | Activation
    operands: tuple[Ref | float, ...]


@dataclasses.dataclass(frozen=True)
class Formula:
    """The value of the last of `steps`; step i (from 1) may refer to the steps before it."""

    steps: tuple[Step, ...]

    @property
    def long(self) -> bool:
        """Whether it takes many instructions."""
        return len(self.steps) > 8 or not all(_short(step.operator) for step in self.steps)

    def __call__(self, x: Expr, lanes: int) -> Expr:
        """The function of a vector of `lanes` elements. Emits a binding for each step."""
        values = [named(x)]
        for step in self.steps:
            operands = [values[o.number] if isinstance(o, Ref) else splat(o, lanes) for o in step.operands]
            values.append(named(_apply(step, operands, lanes)))
        return values[-1]


def _apply(step: Step, operands: list[Expr], lanes: int) -> Expr:
    a, *rest = operands
    if isinstance(step.operator, Activation):
        return step.operator(a, lanes)
    match step.operator:
        case "Add":
            return a + rest[0]
        case "Sub":
            return a - rest[0]
        case "Mul":
            return a * rest[0]
        case "Div":
            divisor = step.operands[1]
            return a * splat(1.0 / divisor, lanes) if _invertible(divisor) else a / rest[0]
        case "Max":
            return tirx.Max(a, rest[0])
        case "Min":
            return tirx.Min(a, rest[0])
        case "Neg":
            return splat(0.0, lanes) - a
        case "Abs":
            return tirx.Max(a, splat(0.0, lanes) - a)
        case "Square":
            return a * a
        case "Cube":
            return a * a * a
        case "Reciprocal":
            return splat(1.0, lanes) / a
        case "Sqrt":
            return tirx.sqrt(a)
        case "Exp":
            return exp(a, lanes)
        case "Erf":
            return erf(a, lanes)
        case _:
            raise ValueError(step.operator)


def _short(operator: str | Activation) -> bool:
    return not operator.long if isinstance(operator, Activation) else operator in SHORT


def _invertible(divisor: Ref | float) -> TypeGuard[float]:
    """Whether a product with the reciprocal does for a division."""
    return isinstance(divisor, float) and 1e-30 < abs(divisor) < 1e30
