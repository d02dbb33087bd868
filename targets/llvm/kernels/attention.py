"""Scaled dot-product attention, softmax(scale Q K' + mask) V, one head at a time, scores kept near the core.

After FlashAttention (T. Dao et al., 2022) in that no [T, T] matrix is ever stored; all keys of a block of queries fit a
cache here, so the softmax needs no second pass. A vector holds one block of *queries*: scores are computed transposed,

    S[j][queries] = sum over d of splat(K[j, d]) * Q'[d][queries]

so that the largest score and the sum of a query are taken lane by lane, never across a vector. Then

    Y[query][d..] += splat(S[j][query]) * V[j][d..]

Both products are register tiles (see `tile`): keys by one vector of queries, and queries by vectors of V.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Function,
    Isa,
    function,
    i64,
    load,
    loop,
    named,
    registers,
    scratch,
    splat,
    store,
    when,
)  # fmt: skip
from graphopt.targets.llvm.kernels.vector_math import exp

LOWEST = -3.4028234663852886e38
Size = int | str


@dataclasses.dataclass(frozen=True)
class Operand:
    """How a tensor of 4 axes is stored: letters of n (batch), h (head), t (position), d (feature), in order."""

    layout: str

    def shape(self, n: Size, h: int, t: Size, d: int) -> list[Size]:
        """The buffer's shape."""
        sizes = {"n": n, "h": h, "t": t, "d": d}
        return [sizes[axis] for axis in self.layout]

    def at(self, n: Expr, h: Expr, t: Expr, d: Expr) -> list[Expr]:
        """The indices of an element."""
        indices = {"n": n, "h": h, "t": t, "d": d}
        return [indices[axis] for axis in self.layout]


@dataclasses.dataclass(frozen=True)
class Attention:
    """Sizes (strings are symbolic), how operands and result are stored, the mask's shape with 1 where it repeats."""

    n: Size
    heads: int
    tq: Size
    tk: Size
    dk: int
    dv: int
    scale: float
    q: Operand
    k: Operand
    v: Operand
    y: Operand
    mask: tuple[Size, ...] | None = None


def make(a: Attention, isa: Isa, parallel: bool, name: str = "attention") -> tirx.PrimFunc:
    """``f(q, k, v[, mask], y)``."""
    with function(name) as (f, made):
        q = f.argument("q", a.q.shape(a.n, a.heads, a.tq, a.dk))
        k = f.argument("k", a.k.shape(a.n, a.heads, a.tk, a.dk))
        v = f.argument("v", a.v.shape(a.n, a.heads, a.tk, a.dv))
        mask = None if a.mask is None else f.argument("mask", a.mask)
        y = f.argument("y", a.y.shape(a.n, a.heads, a.tq, a.dv))
        with loop(f.dim(a.n) * a.heads, parallel=parallel) as p:
            head = _Head(a, isa, f, q, k, v, mask, y, p // a.heads, p % a.heads)
            head.emit()
    return made[0]


@dataclasses.dataclass(frozen=True)
class _Head:
    a: Attention
    isa: Isa
    f: Function
    q: Any
    k: Any
    v: Any
    mask: Any
    y: Any
    n: Expr
    h: Expr

    def emit(self) -> None:
        a, lanes = self.a, self.isa.lanes
        tq, tk = (t if isinstance(t, int) else self.f.dim(t) for t in (a.tq, a.tk))
        columns = -(-a.dv // lanes)
        values = scratch([tk, columns * lanes])
        self._copy_values(values, tk, columns * lanes)
        queries, scores = scratch([a.dk, lanes]), scratch([tk, lanes])
        with loop((tq + (lanes - 1)) // lanes) as block:
            first = block * lanes
            self._copy_queries(queries, first, tq)
            largest, sum_ = registers(lanes), registers(lanes)
            store(largest, splat(LOWEST, lanes), [0], lanes)
            store(sum_, splat(0.0, lanes), [0], lanes)
            if self.mask is not None and a.mask is not None and a.mask[2] != 1:
                self._copy_mask(scores, first, tq, tk)
            step = min(tk, (self.isa.registers - 4) // 2) if isinstance(tk, int) else (self.isa.registers - 4) // 2
            with loop(tk // step) as t:
                self._scores(queries, scores, largest, t * step, step)
            rest, done = tk % step, tk // step * step
            if not isinstance(rest, int):
                with loop(rest) as r:
                    self._scores(queries, scores, largest, done + r, 1)
            elif rest:
                self._scores(queries, scores, largest, done, rest)
            with loop(tk) as j:
                value = named(exp(load(scores, [j, 0], lanes) - load(largest, [0], lanes), lanes))
                store(scores, value, [j, 0], lanes)
                store(sum_, load(sum_, [0], lanes) + value, [0], lanes)
            factors = scratch([lanes])
            store(factors, splat(1.0, lanes) / load(sum_, [0], lanes), [0], lanes)
            self._products(scores, values, factors, first, tq, tk, columns)

    def _copy_values(self, values: Any, tk: Expr, padded: int) -> None:
        """V of this head with rows of whole vectors."""
        a, lanes = self.a, self.isa.lanes
        with loop(tk) as j:
            if a.v.layout.endswith("d"):
                for start in range(0, a.dv - a.dv % lanes, lanes):
                    store(values, load(self.v, a.v.at(self.n, self.h, j, start), lanes), [j, start], lanes)
                whole = a.dv // lanes * lanes
            else:
                whole = 0
            with loop(a.dv, start=whole) as d:
                store(values, load(self.v, a.v.at(self.n, self.h, j, d), 1), [j, d], 1)
            with loop(padded, start=a.dv) as d:
                store(values, splat(0.0, 1), [j, d], 1)

    def _copy_queries(self, queries: Any, first: Expr, tq: Expr) -> None:
        """Q' of a block of queries, scaled; zeros past the last query."""
        a, lanes = self.a, self.isa.lanes
        with loop(lanes) as i:
            last = named(tirx.Min(first + i, i64(tq - 1)))  # past it any row will do, its results are not stored
            with loop(a.dk) as d:
                value = load(self.q, a.q.at(self.n, self.h, last, d), 1)
                store(queries, value * splat(a.scale, 1), [d, i], 1)

    def _copy_mask(self, scores: Any, first: Expr, tq: Expr, tk: Expr) -> None:
        """A mask that differs between queries, transposed to where the scores go."""
        with loop(self.isa.lanes) as i:
            last = named(tirx.Min(first + i, i64(tq - 1)))
            with loop(tk) as j:
                store(scores, load(self.mask, self._mask_at(last, j), 1), [j, i], 1)

    def _mask_at(self, query: Expr, key: Expr) -> list[Expr]:
        assert self.a.mask is not None
        at = (self.n, self.h, query, key)
        return [0 if size == 1 else index for size, index in zip(self.a.mask, at, strict=True)]

    def _scores(self, queries: Any, scores: Any, largest: Any, key: Expr, count: int) -> None:
        """Scores of `count` keys."""
        a, lanes = self.a, self.isa.lanes
        acc = tile.Accumulators(tile.Shape(count, 1), self.isa)
        with loop(a.dk) as d:
            acc.step(
                range(count),
                lambda i: load(self.k, a.k.at(self.n, self.h, key + i, d), 1),
                lambda _: load(queries, [d, 0], lanes),
            )
        for i in range(count):
            score = acc.vector(i, 0)
            if a.mask is not None and a.mask[2] != 1:
                score = score + load(scores, [key + i, 0], lanes)
            elif a.mask is not None:
                score = score + splat(load(self.mask, self._mask_at(0, key + i), 1), lanes)
            score = named(score)
            store(largest, tirx.Max(load(largest, [0], lanes), score), [0], lanes)
            store(scores, score, [key + i, 0], lanes)

    def _products(self, scores: Any, values: Any, factors: Any, first: Expr, tq: Expr, tk: Expr, columns: int) -> None:
        """The rows of Y of a block of queries."""
        lanes = self.isa.lanes
        shape = tile.choose(lanes, columns, self.isa)
        for column in range(0, columns, shape.cols):
            for row in range(0, lanes, shape.rows):
                part = tile.Shape(min(shape.rows, lanes - row), min(shape.cols, columns - column))
                if isinstance(tq, int) and tq % lanes == 0:
                    self._product(scores, values, factors, first, row, column, part, tq, tk)
                else:
                    with when(first + row < tq):
                        self._product(scores, values, factors, first, row, column, part, tq, tk)

    def _product(
        self, scores: Any, values: Any, factors: Any, first: Expr, row: int, column: int, part: tile.Shape,
        tq: Expr, tk: Expr,
    ) -> None:  # fmt: skip
        a, lanes = self.a, self.isa.lanes
        acc = tile.Accumulators(part, self.isa)
        with loop(tk) as j:
            acc.step(
                range(part.rows),
                lambda i: load(scores, [j, row + i], 1),
                lambda c: load(values, [j, (column + c) * lanes], lanes),
            )
        counts = [min(lanes, a.dv - (column + c) * lanes) for c in range(part.cols)]
        for i in range(part.rows):
            if isinstance(tq, int) and tq % lanes == 0:
                self._store(acc, counts, factors, first, row, column, i)
            else:
                with when(first + (row + i) < tq):
                    self._store(acc, counts, factors, first, row, column, i)

    def _store(
        self, acc: tile.Accumulators, counts: Sequence[int], factors: Any, first: Expr, row: int, column: int, i: int
    ) -> None:
        a, lanes = self.a, self.isa.lanes
        factor = named(load(factors, [row + i], 1))
        for c, count in enumerate(counts):
            vector = count == lanes and a.y.layout.endswith("d")
            for offset, width in [(0, lanes)] if vector else [(e, 1) for e in range(count)]:
                place = a.y.at(self.n, self.h, first + (row + i), (column + c) * lanes + offset)
                store(self.y, acc.vector(i, c, offset, width) * splat(factor, width), place, width)
