"""Local response normalization, channels-last: ``y = x / (bias + alpha/size * sum of x^2 over `size` channels)^beta``.

(A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", 2012.) The
squares of a position's channels lie between zeros in a short workspace; the window's sum is `size` shifted loads.
"""

from __future__ import annotations

import dataclasses

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, runs, scratch, splat, store

BETAS = (0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class Lrn:
    """[*rows, channels] -> the same; `beta` is one of `BETAS`."""

    rows: tuple[int | str, ...]
    channels: int
    size: int
    alpha: float
    beta: float
    bias: float


def make(p: Lrn, isa: Isa, parallel: bool, name: str = "lrn") -> tirx.PrimFunc:
    """``f(x, y)``."""
    before = (p.size - 1) // 2
    with function(name) as (f, made):
        shape = [*p.rows, p.channels]
        x, y = f.argument("x", shape), f.argument("y", shape)
        x, y = f.matrix(x, shape), f.matrix(y, shape)
        with loop(f.product(p.rows), parallel=parallel) as row:
            squares = scratch([1, p.channels + p.size - 1])

            def zero(at: Expr, width: int) -> None:
                store(squares, splat(0.0, width), [0, at], width)

            def square(at: Expr, width: int) -> None:
                value = load(x, [row, at], width)
                store(squares, value * value, [0, before + at], width)

            def normalise(at: Expr, width: int) -> None:
                total = load(squares, [0, at], width)
                for offset in range(1, p.size):
                    total = total + load(squares, [0, at + offset], width)
                base = splat(p.bias, width) + splat(p.alpha / p.size, width) * total
                store(y, load(x, [row, at], width) / _power(base, p.beta), [row, at], width)

            runs(before, 1, zero)
            runs(p.channels, isa.lanes, square)
            runs(p.size - 1 - before, 1, lambda at, width: zero(before + p.channels + at, width))
            runs(p.channels, isa.lanes, normalise)
    return made[0]


def _power(base: Expr, beta: float) -> Expr:
    """base^beta by square roots."""
    if beta == 1.0:
        return base
    root = tirx.sqrt(base)
    return root if beta == 0.5 else root * tirx.sqrt(root)
