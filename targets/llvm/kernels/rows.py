"""What softmax and layer normalization share: passes over one contiguous row in wide vectors, sums across a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, Isa, load, loop, named, pieces, registers, splat, store


def width(isa: Isa, size: int) -> int:
    """Elements worked on at once: as many registers as leave room for temporaries, to hide latency."""
    wide = isa.lanes * (isa.registers // 8)
    while wide > size and wide > 1:
        wide //= 2
    return wide


def sweep(size: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """``body(start, width)`` over a row of `size` elements: a loop over vectors of `lanes`, then what is left."""
    whole = size // lanes
    if whole:
        with loop(whole) as v:
            body(v * lanes, lanes)
    for start, rest in pieces(size - whole * lanes, lanes):
        body(whole * lanes + start, rest)


class Reduction:
    """A running ``combine`` over the vectors of a row."""

    def __init__(self, lanes: int, start: float, combine: Callable[[Expr, Expr], Expr]) -> None:
        self.lanes, self.combine = lanes, combine
        self._sum, self._tail = registers(lanes), registers(1)
        store(self._sum, splat(start, lanes), [0], lanes)
        store(self._tail, splat(start, 1), [0], 1)

    def add(self, value: Expr, lanes: int) -> None:
        """Take in a vector of at most the full width."""
        if lanes == self.lanes:
            store(self._sum, self.combine(load(self._sum, [0], lanes), value), [0], lanes)
        else:
            part = registers(lanes)
            store(part, value, [0], lanes)
            store(self._tail, self.combine(load(self._tail, [0], 1), _across(part, lanes, self.combine)), [0], 1)

    def result(self) -> Expr:
        """The scalar over all vectors taken in."""
        return named(self.combine(_across(self._sum, self.lanes, self.combine), load(self._tail, [0], 1)))


def _across(vector: Any, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Halves onto halves until one element is left; overwrites `vector`."""
    while lanes > 1:
        lanes //= 2
        store(vector, combine(load(vector, [0], lanes), load(vector, [lanes], lanes)), [0], lanes)
    return load(vector, [0], 1)


def maximum(lanes: int) -> Reduction:
    """The largest element."""
    return Reduction(lanes, -3.4028234663852886e38, tirx.Max)


def total(lanes: int) -> Reduction:
    """The sum of the elements."""
    return Reduction(lanes, 0.0, lambda a, b: a + b)
