"""Transposition of any number of axes.

Axes that stay side by side count as one. If the last axis stays last, runs of it are copied. Otherwise two axes matter:
`a`, along which the input is contiguous, and `b`, along which the output is. Squares of n x n elements are loaded as n
vectors along `a`, turned within registers in log2(n) stages of n shuffles (J. Eklundh, "A fast computer method for
matrix transposing", 1972), and stored as n vectors along `b`. Two to four channels next to the positions (pictures)
are taken in or apart by one shuffle for each vector that is stored.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812  # TVM calls it so everywhere

from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Function,
    Isa,
    function,
    i64,
    load,
    loop,
    named,
    pieces,
    runs,
    store,
)

Size = int | str
FEW = 4  # channels up to which whole vectors are shuffled from all of them


@dataclasses.dataclass(frozen=True)
class Transpose:
    """``y = transpose(x, perm)`` for x of `dims`; strings are open dimensions."""

    dims: tuple[Size, ...]
    perm: tuple[int, ...]

    def covered(self) -> bool:
        """Whether both axes that matter have known sizes, and something moves."""
        c = collapse(self)
        return len(c.dims) > 1 and all(isinstance(c.dims[axis], int) for axis in (len(c.dims) - 1, c.perm[-1]))


def collapse(p: Transpose) -> Transpose:
    """The same without axes of size 1, and with axes that stay side by side made one. Open ones stay apart."""
    kept = [axis for axis in p.perm if p.dims[axis] != 1]
    groups: list[list[int]] = []
    for axis in kept:
        before = groups[-1] if groups else []
        nothing_between = (
            bool(before) and before[-1] < axis and all(p.dims[k] == 1 for k in range(before[-1] + 1, axis))
        )
        if nothing_between and all(isinstance(p.dims[k], int) for k in (*before, axis)):
            before.append(axis)
        else:
            groups.append([axis])
    order = sorted(groups)
    sizes = [_product([p.dims[axis] for axis in group]) for group in order]
    return Transpose(tuple(sizes), tuple(order.index(group) for group in groups))


def _product(sizes: Sequence[Size]) -> Size:
    total = sizes[0]
    for size in sizes[1:]:
        assert isinstance(total, int)
        assert isinstance(size, int)
        total *= size
    return total


def make(p: Transpose, isa: Isa, parallel: bool, name: str = "transpose") -> tirx.PrimFunc:
    """``f(x, y)``."""
    c = collapse(p)
    with function(name) as (f, made):
        x = f.argument("x", list(p.dims))
        y = f.argument("y", [p.dims[axis] for axis in p.perm])
        total = i64(f.product(c.dims))
        x, y = (T.decl_buffer([total], "float32", data=whole.data) for whole in (x, y))
        moves = _Moves(f, c, isa, x, y)
        with loop(f.product([c.dims[axis] for axis in moves.outer]), parallel=parallel) as index:
            moves.emit(index)
    return made[0]


class _Moves:
    """What is done for one setting of the axes other than `a` and `b`."""

    def __init__(self, f: Function, c: Transpose, isa: Isa, x: Any, y: Any) -> None:
        self.f, self.c, self.isa, self.x, self.y = f, c, isa, x, y
        rank = len(c.dims)
        self.inner: tuple[int, ...] = (rank - 1,) if c.perm[-1] == rank - 1 else (rank - 1, c.perm[-1])
        self.outer = [axis for axis in c.perm if axis not in self.inner]
        turned = [c.dims[axis] for axis in c.perm]
        self.reads = [f.product(c.dims[axis + 1 :]) for axis in range(rank)]
        self.writes = [f.product(turned[c.perm.index(axis) + 1 :]) for axis in range(rank)]

    def emit(self, index: Expr) -> None:
        """Move everything at position `index` of the outer axes, in the output's order."""
        source, target = self._bases(index)
        sizes = [size for axis in self.inner if isinstance(size := self.c.dims[axis], int)]
        if len(sizes) == 1:
            runs(sizes[0], self.isa.lanes, lambda i, n: store(self.y, load(self.x, [source + i], n), [target + i], n))
            return
        a, b = self.inner
        if sizes[1] <= FEW and self.c.perm[-2] == a:
            self._few(source, target, sizes[1], sizes[0], together=True)
        elif sizes[0] <= FEW and a == b + 1:
            self._few(source, target, sizes[0], sizes[1], together=False)
        else:
            self._squares(source, target, sizes[0], sizes[1])

    def _bases(self, index: Expr) -> tuple[Expr, Expr]:
        source: Expr = i64(0)
        target: Expr = i64(0)
        rest = index
        for position, axis in reversed(list(enumerate(self.outer))):
            size = self.f.dim(self.c.dims[axis])
            at = rest if position == 0 else rest % size
            rest = rest // size
            source, target = source + at * self.reads[axis], target + at * self.writes[axis]
        return named(source), named(target)

    def _few(self, source: Expr, target: Expr, few: int, many: int, together: bool) -> None:
        """`few` rows of `many` elements into `many` groups of `few`, or back."""

        def move(at: Expr, n: int) -> None:
            if together:
                vectors = [load(self.x, [source + r * self.reads[self.inner[1]] + at], n) for r in range(few)]
                picked = [[(pos % few) * n + pos // few for pos in range(j * n, (j + 1) * n)] for j in range(few)]
                places = [target + at * few + j * n for j in range(few)]
            else:
                vectors = [load(self.x, [source + at * few + j * n], n) for j in range(few)]
                picked = [[k * few + r for k in range(n)] for r in range(few)]
                places = [target + r * self.writes[self.inner[0]] + at for r in range(few)]
            vectors = [named(v) for v in vectors]
            for place, indices in zip(places, picked, strict=True):
                store(self.y, _shuffle(vectors, indices), [place], n)

        runs(many, self.isa.lanes, move)

    def _squares(self, source: Expr, target: Expr, along: int, across: int) -> None:
        step_in, step_out = self.reads[self.inner[1]], self.writes[self.inner[0]]
        squares(
            along,
            across,
            self.isa.lanes,
            lambda b, a, n: load(self.x, [source + b * step_in + a], n),
            lambda a, b, row, n: store(self.y, row, [target + a * step_out + b], n),
        )


def squares(
    along: int,
    across: int,
    lanes: int,
    read: Callable[[Expr, Expr, int], Expr],
    write: Callable[[Expr, Expr, Expr, int], None],
) -> None:
    """Turn `across` rows of `along` elements: ``read(b, a, n)`` gives n elements of row b from a on, and
    ``write(a, b, row, n)`` takes n elements of the turned row a from b on.
    """

    def column(b: Expr, height: int) -> None:
        def block(a: Expr, width: int) -> None:
            side = min(height, width)
            for down, right in itertools.product(range(0, height, side), range(0, width, side)):
                first, start = b + down, a + right
                for i, row in enumerate(_turned([read(first + i, start, side) for i in range(side)])):
                    write(start + i, first, row, side)

        _over(along, lanes, block)

    _over(across, lanes, column)


def _over(count: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """As `runs`, with at most three sizes of the rest: singles in a loop."""
    whole = count // lanes
    if whole:
        with loop(whole) as v:
            body(v * lanes, lanes)
    singles = 0
    for start, width in pieces(count - whole * lanes, lanes):
        if width >= 4:
            body(whole * lanes + start, width)
            singles = start + width
    rest = whole * lanes + singles
    if rest < count:
        with loop(count, start=rest) as v:
            body(v, 1)


def _turned(rows: list[Expr]) -> list[Expr]:
    """The transposed square: stage s exchanges elements whose row and column numbers differ in bit s."""
    n = len(rows)
    rows = [named(row) for row in rows]
    step = 1
    while step < n:
        for i in range(n):
            if i & step:
                continue
            pair = [rows[i], rows[i + step]]
            upper = [j if not j & step else n + j - step for j in range(n)]
            lower = [j + step if not j & step else n + j for j in range(n)]
            rows[i], rows[i + step] = named(_shuffle(pair, upper)), named(_shuffle(pair, lower))
        step *= 2
    return rows


def _shuffle(vectors: list[Expr], indices: list[int]) -> Expr:
    """The elements at `indices` of all vectors one after the other."""
    if len(vectors) == len(indices) == 1:
        return vectors[0]
    return tirx.Shuffle(vectors, [tirx.IntImm("int32", i) for i in indices])
