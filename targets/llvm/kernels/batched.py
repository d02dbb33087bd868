"""Products of two computed matrices, batch by batch: ``y[b] = x[b] @ w[b]``, either batch repeated where it is one.

A panel of `w`, so many vectors wide, is copied into a place where its rows follow each other, with zeros past the last
column: then tiles of rows run over it as over packed weights (see `tile`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, i64, load, loop, runs, scratch, splat, store


@dataclasses.dataclass(frozen=True)
class Batched:
    """[*left, m, k] @ [*right, k, n] -> [*batch, m, n]; `left` and `right` have the length of `batch`, with ones."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    m: int
    k: int
    n: int

    @property
    def batch(self) -> tuple[int, ...]:
        """The batches of the result."""
        return tuple(max(a, b) for a, b in zip(self.left, self.right, strict=True))


def make(p: Batched, shapes: Sequence[Sequence[int]], isa: Isa, parallel: bool, name: str = "batched") -> tirx.PrimFunc:
    """``f(x, w, y)``; `shapes` are those the three have, with fewer batch dimensions maybe."""
    blocks = -(-p.n // isa.lanes)
    shape = tile.choose(p.m, blocks, isa)
    with function(name) as (f, made):
        x, w, y = (f.argument(n, list(s)) for n, s in zip("xwy", shapes, strict=True))
        x = f.view(x, [math.prod(p.left), p.m, p.k])
        w = f.view(w, [math.prod(p.right), p.k, p.n])
        y = f.view(y, [math.prod(p.batch), p.m, p.n])
        with loop(math.prod(p.batch), parallel=parallel) as b:
            i, j = _place(p, p.left, b), _place(p, p.right, b)
            whole = p.n // isa.lanes // shape.cols
            panel = scratch([p.k, shape.cols * isa.lanes])
            width = shape.cols * isa.lanes
            if whole:
                with loop(whole) as first:
                    _panel(p, isa, (x, w, y, panel), [b, i, j], first * width, shape, width)
            for first in range(whole * shape.cols, blocks, shape.cols):
                part = tile.Shape(shape.rows, min(shape.cols, blocks - first))
                start = first * isa.lanes
                _panel(p, isa, (x, w, y, panel), [b, i, j], i64(start), part, min(p.n - start, part.cols * isa.lanes))
    return made[0]


def _place(p: Batched, own: tuple[int, ...], b: Expr) -> Expr:
    """Which of the operand's matrices belongs to the result's number `b`."""
    found: Expr = i64(0)
    stride, inside = 1, 1
    for size, whole in reversed(list(zip(own, p.batch, strict=True))):
        if size > 1:
            found = found + b // inside % whole * stride
        stride, inside = stride * size, inside * whole
    return found


def _panel(
    p: Batched, isa: Isa, buffers: tuple[Any, ...], at: list[Expr], start: Expr, shape: tile.Shape, columns: int
) -> None:
    """Columns from `start` on."""
    (b, i, j), (x, w, y, panel), lanes = at, buffers, isa.lanes
    with loop(p.k) as k:
        runs(columns, lanes, lambda c, n: store(panel, load(w, [j, k, start + c], n), [k, c], n))
        for c in range(columns, shape.cols * lanes):
            store(panel, splat(0.0, 1), [k, c], 1)

    def rows(first: Expr, count: int) -> None:
        acc = tile.Accumulators(tile.Shape(count, shape.cols), isa)
        with loop(p.k) as k:
            acc.step(range(count), lambda r: x[i, first + r, k], lambda c: load(panel, [k, c * lanes], lanes))
        acc.write(
            [min(lanes, columns - c * lanes) for c in range(shape.cols)],
            lambda r, c, offset: [b, first + r, start + c * lanes + offset],
            lambda value, _at, _width: value,
            y,
        )

    with loop(p.m // shape.rows) as t:
        rows(t * shape.rows, shape.rows)
    if p.m % shape.rows:
        rows(i64(p.m // shape.rows * shape.rows), p.m % shape.rows)
