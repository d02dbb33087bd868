"""Positions of a channels-last value looked up in tables: interpolation (separable), and padding by any rule.

``y[n, i, j, :] = sum_a row_weight[i, a] * sum_b column_weight[j, b] * x[n, row[i, a], column[j, b], :]``

The tables are made when the model is compiled, so that all of ONNX's conventions are one kernel. With one tap there are
no weights, and a negative row or column stands for a constant.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, named, runs, splat, store, when

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Resample:
    """[n, h, w, c] -> [n, oh, ow, c] with so many taps down and across; `fill`: the constant, if there is one."""

    n: int | str
    size: tuple[int, int]
    c: int
    out: tuple[int, int]
    taps: tuple[int, int] = (1, 1)
    fill: float | None = None


def make(p: Resample, isa: Isa, parallel: bool, name: str = "resample") -> tirx.PrimFunc:
    """``f(x, row, column[, row_weight, column_weight], y)``: int32 tables [out, taps], weights of the same shapes."""
    (oh, ow), (down, across) = p.out, p.taps
    with function(name) as (f, made):
        x = f.argument("x", [p.n, *p.size, p.c])
        row, column = f.argument("row", [oh, down], "int32"), f.argument("column", [ow, across], "int32")
        weighted = p.taps != (1, 1)
        weights = [f.argument("v", [oh, down]), f.argument("u", [ow, across])] if weighted else []
        y = f.argument("y", [p.n, oh, ow, p.c])
        with loop(f.dim(p.n) * oh, parallel=parallel) as line:
            n, i = line // oh, line % oh
            rows = _taps(row, weights[:1], i, down)
            with loop(ow) as j:
                columns = _taps(column, weights[1:], j, across)
                _pixel(p, isa, x, y, [n, i, j], rows, columns)
    return made[0]


Taps = list[tuple[Expr, Expr]]
"""Position and weight (None: one)."""


def _pixel(p: Resample, isa: Isa, x: Any, y: Any, at: list[Expr], rows: Taps, columns: Taps) -> None:
    def interpolated(channel: Expr, lanes: int) -> None:
        lines = [(v, _sum([(u, load(x, [at[0], r, c, channel], lanes)) for c, u in columns], lanes)) for r, v in rows]
        store(y, _sum(lines, lanes), [*at, channel], lanes)

    if p.fill is None:
        runs(p.c, isa.lanes, interpolated)
        return
    inside, fill = tirx.And(rows[0][0] >= 0, columns[0][0] >= 0), p.fill
    with when(inside):
        runs(p.c, isa.lanes, interpolated)
    with when(tirx.Not(inside)):
        runs(p.c, isa.lanes, lambda channel, lanes: store(y, splat(fill, lanes), [*at, channel], lanes))


def _taps(table: Any, weights: list[Any], at: Expr, count: int) -> Taps:
    positions = [named(tirx.Cast("int64", table[at, tap])) for tap in range(count)]
    return [(position, named(weights[0][at, tap]) if weights else None) for tap, position in enumerate(positions)]


def _sum(terms: list[tuple[Expr, Expr]], lanes: int) -> Expr:
    total: Expr = None
    for weight, value in terms:
        product = value if weight is None else splat(weight, lanes) * value
        total = product if total is None else total + product
    return total
