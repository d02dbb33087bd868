"""Concatenation along the channels, channels-last: each position copies the channels of every input in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, runs, store


def make(
    rows: Sequence[int | str], channels: Sequence[int], isa: Isa, parallel: bool, name: str = "concat"
) -> tirx.PrimFunc:
    """``f(x0, x1, ..., y)``: inputs [*rows, channels[i]], output [*rows, sum of channels]."""
    total = sum(channels)
    with function(name) as (f, made):
        shapes = [[*rows, c] for c in (*channels, total)]
        arguments = [f.argument(f"x{i}", shape) for i, shape in enumerate(shapes)]
        *inputs, y = [f.matrix(a, shape) for a, shape in zip(arguments, shapes, strict=True)]
        with loop(f.product(rows), parallel=parallel) as row:
            start = 0
            for x, count in zip(inputs, channels, strict=True):
                runs(count, isa.lanes, _copy(x, y, row, start))
                start += count
    return made[0]


def _copy(x: Any, y: Any, row: Expr, start: int) -> Callable[[Expr, int], None]:
    return lambda at, width: store(y, load(x, [row, at], width), [row, at + start], width)
