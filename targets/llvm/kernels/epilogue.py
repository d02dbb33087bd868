"""What is done to a result before it is stored: add a residual, apply an activation."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, load, splat
from graphopt.targets.llvm.kernels.vector_math import sigmoid, tanh

Name = Literal["relu", "clip", "leaky-relu", "sigmoid", "swish", "hard-sigmoid", "hard-swish", "tanh"]


@dataclasses.dataclass(frozen=True)
class Activation:
    """An elementwise function; `a` and `b` are its parameters.

    clip: a <= y <= b. leaky-relu: slope a. hard-sigmoid: ``clip(a*x + b, 0, 1)``.
    hard-swish: ``x * clip(x/6 + 1/2, 0, 1)``.
    """

    name: Name
    a: float = 0.0
    b: float = 0.0

    def __call__(self, x: Expr, lanes: int) -> Expr:
        """The function of a vector of `lanes` elements."""
        match self.name:
            case "relu":
                return tirx.Max(x, splat(0.0, lanes))
            case "clip":
                return tirx.Min(tirx.Max(x, splat(self.a, lanes)), splat(self.b, lanes))
            case "leaky-relu":
                return tirx.Max(x, splat(0.0, lanes)) + splat(self.a, lanes) * tirx.Min(x, splat(0.0, lanes))
            case "hard-sigmoid":
                return _unit(x * splat(self.a, lanes) + splat(self.b, lanes), lanes)
            case "hard-swish":
                return x * _unit(x * splat(1 / 6, lanes) + splat(0.5, lanes), lanes)
            case "sigmoid":
                return sigmoid(x, lanes)
            case "swish":
                return x * sigmoid(x, lanes)
            case "tanh":
                return tanh(x, lanes)


def _unit(x: Expr, lanes: int) -> Expr:
    return tirx.Min(tirx.Max(x, splat(0.0, lanes)), splat(1.0, lanes))


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """``activation(x + residual)`` ("before") or ``activation(x) + residual`` ("after"); each part optional."""

    residual: Literal["before", "after"] | None = None
    activation: Activation | None = None

    def finish(self, residual: Any, value: Expr, indices: list[Expr], lanes: int) -> Expr:
        """The value to store at `indices`; `residual` is a buffer of the output's shape, or None."""
        if self.residual == "before":
            value = value + load(residual, indices, lanes)
        if self.activation is not None:
            value = self.activation(value, lanes)
        return value + load(residual, indices, lanes) if self.residual == "after" else value
