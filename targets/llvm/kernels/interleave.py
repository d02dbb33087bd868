"""The phases of a transposed convolution put together: output position ``q * stride + r`` is position q of phase r."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, runs, store, when


def make(
    n: int | str, size: tuple[int, int], out: tuple[int, int], c: int, strides: tuple[int, int], isa: Isa,
    parallel: bool, name: str = "interleave",
) -> tirx.PrimFunc:  # fmt: skip
    """``f(phase_00, phase_01, ..., y)``: phases [n, *size, c], row by row, and y [n, *out, c], which ends early."""
    (down, across), (height, width) = strides, out
    with function(name) as (f, made):
        phases = [f.argument(f"x{i}", [n, *size, c]) for i in range(down * across)]
        y = f.argument("y", [n, height, width, c])

        def line(image: Expr, row: Expr, r: int) -> None:
            def column(q: Expr, s: int) -> None:
                target = [image, row * down + r, q * across + s]
                _copy(phases[r * across + s], y, [image, row, q], target, c, isa)

            whole = width // across
            with loop(whole) as q:
                for s in range(across):
                    column(q, s)
            for s in range(width % across):
                column(whole, s)

        with loop(f.dim(n) * size[0], parallel=parallel) as p:
            image, row = p // size[0], p % size[0]
            for r in range(down):
                if size[0] * down == height:
                    line(image, row, r)
                else:
                    with when(row * down + r < height):
                        line(image, row, r)
    return made[0]


def _copy(x: Any, y: Any, source: list[Expr], target: list[Expr], c: int, isa: Isa) -> None:
    runs(c, isa.lanes, lambda at, n: store(y, load(x, [*source, at], n), [*target, at], n))
