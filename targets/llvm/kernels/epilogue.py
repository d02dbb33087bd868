"""What is done to a result before it is stored: activations, and a residual added on the way."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, load, named, splat
from graphopt.targets.llvm.kernels.vector_math import sigmoid, tanh

if TYPE_CHECKING:
    from graphopt.targets.llvm.kernels.formula import Formula

Name = Literal["relu", "clip", "leaky-relu", "sigmoid", "swish", "hard-sigmoid", "hard-swish", "tanh", "affine"]


@dataclasses.dataclass(frozen=True)
class Activation:
    """An elementwise function; `a` and `b` are its parameters.

    clip: a <= y <= b. leaky-relu: slope a. hard-sigmoid: ``clip(a*x + b, 0, 1)``.
    hard-swish: ``x * clip(x/6 + 1/2, 0, 1)``. affine: ``a*x + b``.
    """

    name: Name
    a: float = 0.0
    b: float = 0.0

    @property
    def long(self) -> bool:
        """Whether it takes many instructions."""
        return self.name in ("sigmoid", "swish", "tanh")

    def __call__(self, x: Expr, lanes: int) -> Expr:
        """The function of a vector of `lanes` elements."""
        x = named(x)
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
            case "affine":
                scaled = x if self.a == 1.0 else x * splat(self.a, lanes)
                return scaled if self.b == 0.0 else scaled + splat(self.b, lanes)


def _unit(x: Expr, lanes: int) -> Expr:
    return tirx.Min(tirx.Max(x, splat(0.0, lanes)), splat(1.0, lanes))


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """``then(first(x) + residual)``: chains of activations, and the residual if there is one."""

    first: tuple[Activation | Formula, ...] = ()
    residual: bool = False
    then: tuple[Activation | Formula, ...] = ()

    @property
    def long(self) -> bool:
        """Whether it takes many instructions."""
        return any(activation.long for activation in (*self.first, *self.then))

    def finish(self, residual: Any, value: Expr, indices: list[Expr], lanes: int) -> Expr:
        """The value to store at `indices`; `residual` is a buffer of the output's shape, or None."""
        for activation in self.first:
            value = activation(value, lanes)
        if self.residual:
            value = value + load(residual, indices, lanes)
        for activation in self.then:
            value = activation(value, lanes)
        return value
