"""Softmax over the last axis: the largest element, exponentials and their sum, then the division; or its logarithm."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from graphopt.targets.llvm.kernels import rows as row
from graphopt.targets.llvm.kernels.emit import Isa, function, load, loop, named, splat, store
from graphopt.targets.llvm.kernels.vector_math import exp


def make(
    rows: Sequence[int | str], size: int, isa: Isa, parallel: bool, name: str = "softmax", log: bool = False
) -> tirx.PrimFunc:
    """``f(x, y)``: ``y = exp(x - max x) / sum`` over the last axis of [*rows, size]; `log`: ``x - max x - log sum``."""
    lanes = row.width(isa, size)
    with function(name) as (f, made):
        x, y = (f.argument(n, [*rows, size]) for n in ("x", "y"))
        x, y = f.matrix(x, [*rows, size]), f.matrix(y, [*rows, size])
        with loop(f.product(rows), parallel=parallel) as r:
            largest = row.maximum(lanes)
            row.sweep(size, lanes, lambda at, n: largest.add(load(x, [r, at], n), n))
            top = largest.result()
            sum_ = row.total(lanes)

            def exponential(at: row.Expr, n: int) -> None:
                value = named(exp(load(x, [r, at], n) - splat(top, n), n))
                sum_.add(value, n)
                if not log:
                    store(y, value, [r, at], n)

            row.sweep(size, lanes, exponential)
            if log:
                shift = named(tirx.log(sum_.result()))

                def logarithm(at: row.Expr, n: int) -> None:
                    store(y, load(x, [r, at], n) - splat(top, n) - splat(shift, n), [r, at], n)

                row.sweep(size, lanes, logarithm)
            else:
                scale = named(splat(1.0, 1) / sum_.result())
                row.sweep(size, lanes, lambda at, n: store(y, load(y, [r, at], n) * splat(scale, n), [r, at], n))
    return made[0]
