"""What the compiler takes: operators on 8-bit tensors, in order, that become one command stream."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from graphopt.targets.npu.layer import Layer

Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A dense tensor (batch, channels, height, width) of 8 bits, or of int32 with `size` 4. A matrix is one plane."""

    name: str
    shape: Shape
    size: int = 1

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.size


@dataclasses.dataclass(frozen=True)
class View:
    """Channels of a tensor from `first` on, or (then `first` is 0) all its bytes in another shape."""

    tensor: Tensor
    shape: Shape
    first: int = 0

    @property
    def reshaped(self) -> bool:
        """Whether the shape is another than the tensor's, its channels apart."""
        (n, _, h, w), (tn, _, th, tw) = self.shape, self.tensor.shape
        return (n, h, w) != (tn, th, tw)


def whole(tensor: Tensor) -> View:
    """All of `tensor` as it is."""
    return View(tensor, tensor.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Contract:
    """A convolution or matrix product: `layer` says what it computes."""

    layer: Layer
    input: View
    output: View

    @property
    def name(self) -> str:
        """Of the source node."""
        return self.layer.name


@dataclasses.dataclass(frozen=True)
class Quantum:
    """How bytes are read or written: sign, zero point, and (when written) the range."""

    signed: bool
    zero: int
    low: int = 0
    high: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Sum (`op` "Add") or product ("Mul") of two tensors; `b` may have height and width 1 where `a` has not.

    Scales as in `numerics`: for a sum in steps of the result; the product's have the result's step in the second.
    """

    name: str
    op: str
    a: View
    b: View
    output: View
    a_quantum: Quantum
    b_quantum: Quantum
    result: Quantum
    a_scale: np.float32
    b_scale: np.float32


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """y = table[x]: 256 bytes. `repeat`: how often a row and a column of the input occur in the output."""

    name: str
    op: str
    input: View
    output: View
    table: Array
    repeat: tuple[int, int] = (1, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """Pooling: maximum, or mean in steps of the result (`scale`)."""

    name: str
    op: str
    input: View
    output: View
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    quantum: Quantum
    result: Quantum
    maximum: bool
    scale: np.float32 | float = 1.0


Op = Contract | Pair | Table | Window


def inputs_of(op: Op) -> tuple[View, ...]:
    """What `op` reads."""
    return (op.a, op.b) if isinstance(op, Pair) else (op.input,)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """`ops` in an order in which each reads what earlier ones wrote, or `inputs`; `outputs` are kept."""

    name: str
    ops: tuple[Op, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
