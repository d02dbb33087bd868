"""Sums, means, largest and smallest elements over axes that lie side by side: ``[outer, k, inner] -> [outer, inner]``.

With inner elements vectors run along them, over k; without, along k itself. Several sums side by side hide the latency
of an addition where few vectors fill the inner elements. Each adds up at most `BLOCK` elements before they go into the
total: the error of a sum grows with its length (N. Higham, "The accuracy of floating point summation", 1993).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from tvm import tirx

from graphopt.targets.llvm.kernels import rows as row
from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Isa,
    function,
    i64,
    load,
    loop,
    registers,
    runs,
    splat,
    store,
)  # fmt: skip

Op = Literal["Sum", "Mean", "Max", "Min", "SumSquare", "L1", "L2"]
Size = int | str
WAYS, BLOCK = 4, 256


@dataclasses.dataclass(frozen=True)
class Reduce:
    """What is done to an input of `dims` over the axes from `start` to `stop`; strings are open dimensions."""

    op: Op
    dims: tuple[Size, ...]
    start: int
    stop: int

    @property
    def inner(self) -> int:
        """Elements inside the axes, which must be known."""
        total = 1
        for size in self.dims[self.stop :]:
            assert isinstance(size, int)
            total *= size
        return total

    @property
    def known(self) -> int | None:
        """Elements that make one, if that is a number."""
        total = 1
        for size in self.dims[self.start : self.stop]:
            if isinstance(size, str):
                return None
            total *= size
        return total

    def covered(self) -> bool:
        """Whether the sizes that the loops unroll over are known."""
        inside = all(isinstance(size, int) for size in self.dims[self.stop :])
        return inside and 0 not in self.dims and (self.inner > 1 or self.known is not None)


def make(p: Reduce, output: Sequence[Size], isa: Isa, parallel: bool, name: str = "reduce") -> tirx.PrimFunc:
    """``f(x, y)``; `output` is the shape of y: the outer and inner dimensions, with ones anywhere."""
    with function(name) as (f, made):
        x, y = f.argument("x", list(p.dims)), f.argument("y", list(output))
        outer, k = f.product(p.dims[: p.start]), f.product(p.dims[p.start : p.stop])
        y = f.view(y, [outer, p.inner])
        if p.inner == 1:
            x = f.view(x, [outer, k])
            with loop(outer, parallel=parallel) as at:
                _along(p, isa, x, y, at, k)
        else:
            x = f.view(x, [outer, k, p.inner])
            with loop(outer, parallel=parallel) as at:
                ways = max(1, WAYS // (-(-p.inner // isa.lanes)))
                runs(p.inner, isa.lanes, lambda i, n: _across(p, x, y, [at, k, i], n, ways))
    return made[0]


def _along(p: Reduce, isa: Isa, x: Any, y: Any, at: Expr, k: int) -> None:
    lanes = row.width(isa, k)
    found = row.Reduction(lanes, _first(p.op), lambda a, b: _combine(p.op, a, b))
    row.sweep(k, lanes, lambda i, n: found.add(_before(p.op, load(x, [at, i], n), n), n))
    store(y, _after(p.op, found.result(), k, 1), [at, 0], 1)


def _across(p: Reduce, x: Any, y: Any, place: list[Expr], lanes: int, ways: int) -> None:
    at, k, i = place
    ways = ways if isinstance(k, int) else 1
    total, part = registers(lanes), registers(lanes * ways)
    store(total, splat(_first(p.op), lanes), [0], lanes)

    def clear() -> None:
        for way in range(ways):
            store(part, splat(_first(p.op), lanes), [way * lanes], lanes)

    def take(step: Expr, way: int) -> None:
        value = _before(p.op, load(x, [at, step, i], lanes), lanes)
        store(part, _combine(p.op, load(part, [way * lanes], lanes), value), [way * lanes], lanes)

    def add() -> None:
        for way in range(ways):
            value = _combine(p.op, load(total, [0], lanes), load(part, [way * lanes], lanes))
            store(total, value, [0], lanes)

    block = BLOCK * ways
    with loop((k + block - 1) // block) as b:
        clear()
        end = tirx.Min(i64(k), i64((b + 1) * block))
        steps = (end - b * block) // ways
        with loop(steps) as s:
            for way in range(ways):
                take(b * block + s * ways + way, way)
        if ways > 1:
            with loop(end, start=b * block + steps * ways) as s:
                take(s, 0)
        add()
    store(y, _after(p.op, load(total, [0], lanes), k, lanes), [at, i], lanes)


def _first(op: Op) -> float:
    return {"Max": -math.inf, "Min": math.inf}.get(op, 0.0)


def _combine(op: Op, a: Expr, b: Expr) -> Expr:
    match op:
        case "Max":
            return tirx.Max(a, b)
        case "Min":
            return tirx.Min(a, b)
        case _:
            return a + b


def _before(op: Op, value: Expr, lanes: int) -> Expr:
    match op:
        case "SumSquare" | "L2":
            return value * value
        case "L1":
            return tirx.Max(value, splat(0.0, lanes) - value)
        case _:
            return value


def _after(op: Op, value: Expr, k: Expr, lanes: int) -> Expr:
    if op == "L2":
        return tirx.sqrt(value)
    if op == "Mean":
        return value * splat(1.0 / k, lanes) if isinstance(k, int) else value / splat(tirx.Cast("float32", k), lanes)
    return value
