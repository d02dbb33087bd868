"""Layer normalization (J. Ba, J. Kiros, G. Hinton, 2016) along one axis, in two passes for an exact variance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from tvm import tirx

from graphopt.targets.llvm.kernels import rows as row
from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Isa,
    function,
    i64,
    load,
    loop,
    named,
    pieces,
    registers,
    splat,
    store,
)

BLOCK = 64  # elements summed before their sum is: rounding errors grow with the longest of both


def make(
    rows: Sequence[int | str], size: int, epsilon: float, isa: Isa, parallel: bool, name: str = "layer_norm"
) -> tirx.PrimFunc:
    """``f(x, scale, bias, y)``: ``y = (x - mean) / sqrt(variance + epsilon) * scale + bias``; x is [*rows, size]."""
    lanes = row.width(isa, size)
    with function(name) as (f, made):
        x, scale, bias = f.argument("x", [*rows, size]), f.argument("scale", [size]), f.argument("bias", [size])
        y = f.argument("y", [*rows, size])
        x, y = f.matrix(x, [*rows, size]), f.matrix(y, [*rows, size])
        with loop(f.product(rows), parallel=parallel) as r:
            sum_ = row.total(lanes)
            row.sweep(size, lanes, lambda at, n: sum_.add(load(x, [r, at], n), n))
            mean = named(sum_.result() * splat(1.0 / size, 1))
            squares = row.total(lanes)

            def square(at: row.Expr, n: int) -> None:
                centred = named(load(x, [r, at], n) - splat(mean, n))
                squares.add(centred * centred, n)

            row.sweep(size, lanes, square)
            factor = named(splat(1.0, 1) / tirx.sqrt(squares.result() * splat(1.0 / size, 1) + splat(epsilon, 1)))

            def normalise(at: row.Expr, n: int) -> None:
                value = (load(x, [r, at], n) - splat(mean, n)) * splat(factor, n)
                store(y, value * load(scale, [at], n) + load(bias, [at], n), [r, at], n)

            row.sweep(size, lanes, normalise)
    return made[0]


@dataclasses.dataclass(frozen=True)
class Across:
    """A value of `dims` (strings are open dimensions, in front of `axis` only) and the axis, which isn't the last."""

    dims: tuple[int | str, ...]
    axis: int

    @property
    def size(self) -> int:
        """Elements along the axis."""
        return self._product(slice(self.axis, self.axis + 1))

    @property
    def inner(self) -> int:
        """Elements behind it."""
        return self._product(slice(self.axis + 1, None))

    def _product(self, part: slice) -> int:
        return math.prod(d for d in self.dims[part] if isinstance(d, int))


def across(p: Across, epsilon: float, isa: Isa, parallel: bool, name: str = "layer_norm") -> tirx.PrimFunc:
    """As `make`, with statistics along an axis that isn't the last, for vectors of places behind it."""
    lanes = row.width(isa, p.inner)
    with function(name) as (f, made):
        x = f.argument("x", p.dims)
        scale, bias = f.argument("scale", [p.size]), f.argument("bias", [p.size])
        y = f.argument("y", p.dims)
        outer, whole = f.product(p.dims[: p.axis]), p.inner // lanes
        x, y = f.view(x, [outer, p.size, p.inner]), f.view(y, [outer, p.size, p.inner])

        def normalise(o: Expr, at: Expr, n: int) -> None:
            mean = named(_sum(p.size, n, lambda k: load(x, [o, k, at], n)) * splat(1.0 / p.size, n))

            def square(k: Expr) -> Expr:
                centred = named(load(x, [o, k, at], n) - mean)
                return centred * centred

            variance = _sum(p.size, n, square) * splat(1.0 / p.size, n)
            factor = named(splat(1.0, n) / tirx.sqrt(variance + splat(epsilon, n)))
            with loop(p.size) as k:
                value = (load(x, [o, k, at], n) - mean) * factor
                store(y, value * splat(scale[k], n) + splat(bias[k], n), [o, k, at], n)

        if whole:
            with loop(outer * whole, parallel=parallel) as t:
                normalise(t // whole, t % whole * lanes, lanes)
        for start, n in pieces(p.inner - whole * lanes, lanes):
            with loop(outer, parallel=parallel) as o:
                normalise(o, whole * lanes + start, n)
    return made[0]


def _sum(count: int, lanes: int, value: Callable[[Expr], Expr]) -> Expr:
    """The sum of ``value(k)`` for all k, in blocks."""
    total, part = registers(lanes), registers(lanes)
    store(total, splat(0.0, lanes), [0], lanes)
    with loop(-(-count // BLOCK)) as b:
        store(part, splat(0.0, lanes), [0], lanes)
        with loop(tirx.Min(i64(count), (b + 1) * BLOCK), start=b * BLOCK) as k:
            store(part, load(part, [0], lanes) + value(k), [0], lanes)
        store(total, load(total, [0], lanes) + load(part, [0], lanes), [0], lanes)
    return load(total, [0], lanes)
