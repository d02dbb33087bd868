"""Normalization by the root mean square (B. Zhang, R. Sennrich, 2019) over the last axis."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from graphopt.targets.llvm.kernels import rows as row
from graphopt.targets.llvm.kernels.emit import Isa, function, load, loop, named, splat, store


def make(
    rows: Sequence[int | str], size: int, epsilon: float, isa: Isa, parallel: bool, name: str = "rms_norm"
) -> tirx.PrimFunc:
    """``f(x, scale, y)``: ``y = x / sqrt(mean x^2 + epsilon) * scale``; x is [*rows, size]."""
    lanes = row.width(isa, size)
    with function(name) as (f, made):
        x, scale = f.argument("x", [*rows, size]), f.argument("scale", [size])
        y = f.argument("y", [*rows, size])
        x, y = f.matrix(x, [*rows, size]), f.matrix(y, [*rows, size])
        with loop(f.product(rows), parallel=parallel) as r:
            squares = row.total(lanes)

            def square(at: row.Expr, n: int) -> None:
                value = named(load(x, [r, at], n))
                squares.add(value * value, n)

            row.sweep(size, lanes, square)
            factor = named(splat(1.0, 1) / tirx.sqrt(squares.result() * splat(1.0 / size, 1) + splat(epsilon, 1)))

            def normalise(at: row.Expr, n: int) -> None:
                store(y, load(x, [r, at], n) * splat(factor, n) * load(scale, [at], n), [r, at], n)

            row.sweep(size, lanes, normalise)
    return made[0]
