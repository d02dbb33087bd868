"""Layer normalization (J. Ba, J. Kiros, G. Hinton, 2016) over the last axis, in two passes for an exact variance."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from graphopt.targets.llvm.kernels import rows as row
from graphopt.targets.llvm.kernels.emit import Isa, function, load, loop, named, splat, store


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
