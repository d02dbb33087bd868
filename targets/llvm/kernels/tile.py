"""The register tile: ``rows x cols`` accumulators of one vector each, and the multiply-adds that fill them.

Row i holds one output position, column j a vector of output channels. One step over the inner dimension loads `cols`
weight vectors, and broadcasts one input scalar for each row::

    acc[i][j] += splat(a_i) * w_j            rows * cols multiply-adds, rows + cols loads

A CPU with two FMA units of latency 4 and two load ports needs ``rows * cols >= 8`` and ``rows + cols <= rows * cols``;
``rows * cols + cols + 1`` registers must be there, or LLVM spills (with 16 of them, 7x2 runs at half of 6x2's speed).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from graphopt.targets.llvm.kernels.arithmetic import FLOAT, Arithmetic
from graphopt.targets.llvm.kernels.emit import Expr, Isa, load, loop, pieces, splat, store, vectors

LOAD, FURTHER = 0.25, 0.03  # see `price`


@dataclasses.dataclass(frozen=True)
class Shape:
    """Rows and vector columns of a tile."""

    rows: int
    cols: int


def price(shape: Shape, rows: int, cols: int) -> float:
    """What one step of the inner dimension costs an output of `rows` positions by `cols` vectors, in multiply-adds.

    A tile's step costs its multiply-adds and a quarter of its loads, which come from further away than registers
    however well they overlap (6x4 beats 14x2 by 5 to 20 %); a tile of fewer than 8 accumulators hides latency badly and
    is charged as 8. Each further kind of tile, where rows or columns are left over, costs 3 %: it is more code.
    """
    parts = [(r, c, rn * cn) for c, cn in _parts(cols, shape.cols) for r, rn in _parts(rows, shape.rows)]
    total = sum(count * max(max(r * c, 8) + LOAD * (r + c), r + c) for r, c, count in parts)
    return total * (1 + FURTHER * (len(parts) - 1))


def waits(shape: Shape, isa: Isa) -> bool:
    """Whether a tile has too few accumulators to keep both units busy, and there are registers for as many again."""
    count = shape.rows * shape.cols
    return count < 8 and 2 * count + shape.cols + 1 <= isa.registers


def choose(rows: int, cols: int, isa: Isa) -> Shape:
    """The tile for an output of `rows` positions by `cols` vectors: the cheapest by `price`."""
    return ranked(rows, cols, isa)[0]


def ranked(rows: int, cols: int, isa: Isa) -> list[Shape]:
    """Every tile that fits the registers, the cheapest by `price` first, then the largest."""
    fitting = [
        Shape(r, c)
        for c in range(1, min(cols, 6) + 1)
        for r in range(1, min(rows, isa.registers) + 1)
        if r * c + c + 1 <= isa.registers
    ]
    return sorted(fitting, key=lambda shape: (price(shape, rows, cols), -shape.rows * shape.cols))


def _parts(total: int, step: int) -> list[tuple[int, int]]:
    full, rest = divmod(total, step)
    return [(size, count) for size, count in ((step, full), (rest, 1 if rest else 0)) if count]


Place = Callable[[Expr, int, int], list[Expr]]


PREFETCH_FROM = 1 << 19  # bytes of weights that the L2 cache does not keep from one use to the next


@dataclasses.dataclass(frozen=True)
class Ahead:
    """Fetching of the next panel's weights while this one is worked on: memory and arithmetic overlap.

    A panel of `cols` blocks serves `passes` tiles one after the other. Each step of tile number t asks for the cache
    lines that the same step of the next panel needs, of the columns that fall to t.
    """

    cols: int
    passes: int

    def columns(self, t: Expr) -> list[Expr]:
        """The columns of the next panel that tile t fetches."""
        each = -(-self.cols // self.passes)
        return [(t * each + d) % self.cols for d in range(each)]

    @classmethod
    def of(cls, cols: int, passes: Expr, nbytes: int) -> Ahead | None:
        """None where the weights stay in the cache anyway, or a panel is used only once."""
        known = passes if isinstance(passes, int) else cols
        return cls(cols, known) if nbytes >= PREFETCH_FROM and known > 1 else None


class Accumulators:
    """The accumulators of one tile, in registers."""

    def __init__(
        self, shape: Shape, isa: Isa, start: Callable[[int], Expr] | None = None, arithmetic: Arithmetic = FLOAT
    ) -> None:
        """`start(j)` is the vector that column j begins with (a bias); zero without it."""
        self.shape, self.isa, self.arithmetic = shape, isa, arithmetic
        self._vectors = vectors(shape.rows * shape.cols, isa.lanes, arithmetic.dtype)
        for j in range(shape.cols):
            for i in range(shape.rows):
                self._put(i, j, splat(0.0, isa.lanes) if start is None else start(j))

    def step(self, rows: Iterable[int], a: Callable[[int], Expr], w: Callable[[int], Expr]) -> None:
        """One step of the inner dimension for the given rows: ``acc[i][j] += splat(a(i)) * w(j)``.

        Columns innermost: with rows innermost LLVM keeps all broadcasts alive and spills.
        """
        for i in rows:
            spread = self.arithmetic.spread(a(i), self.isa.lanes)
            for j in range(self.shape.cols):
                self._put(i, j, self.arithmetic.add(self.vector(i, j), spread, w(j), self.isa.lanes))

    def add(self, other: Accumulators) -> None:
        """Add another tile's accumulators to these."""
        for i in range(self.shape.rows):
            for j in range(self.shape.cols):
                self._put(i, j, self.vector(i, j) + other.vector(i, j))

    def vector(self, row: int, col: int, offset: int = 0, width: int | None = None) -> Expr:
        """`width` elements (default: the whole vector) of an accumulator."""
        return load(self._at(row, col), [offset], self.isa.lanes if width is None else width)

    def write(
        self,
        counts: Sequence[int],
        to: Place,
        finish: Callable[[Expr, list[Expr], int], Expr],
        out: Any,
        apart: bool = False,
        together: Callable[[list[Expr], list[Expr]], Expr] | None = None,
    ) -> None:
        """Store the tile: ``counts[j]`` elements of column j, in runs of at most a vector.

        `to(i, j, offset)` gives the place of element `offset` of row i, column j in `out`;
        `finish(value, place, width)` the value to store for a run that starts there. With `apart` that is done when
        the tile is stored, in a loop over its rows: less code where finishing takes many instructions.
        `together(values, place)` is the value to store for four or two whole columns side by side at once.
        """
        apart = apart and self.shape.rows > 1
        runs = [(j, *run) for j, count in enumerate(counts) for run in pieces(count, self.isa.lanes)]
        groups: list[tuple[int, int]] = []
        if together is not None:
            groups = self._side_by_side(counts)
            for i, (j, size) in itertools.product(range(self.shape.rows), groups):
                values, place = [self.vector(i, j + k) for k in range(size)], to(i, j, 0)
                store(out, together(values, place), place, size * self.isa.lanes)
        runs = [run for run in runs if not any(j <= run[0] < j + size for j, size in groups)]
        for i in range(self.shape.rows):
            for j, offset, width in runs:
                place, value = to(i, j, offset), self.vector(i, j, offset, width)
                store(out, value if apart else finish(value, place, width), place, width)
        if apart:
            with loop(self.shape.rows) as i:
                for j, offset, width in runs:
                    place = to(i, j, offset)
                    store(out, finish(load(out, place, width), place, width), place, width)

    def _side_by_side(self, counts: Sequence[int]) -> list[tuple[int, int]]:
        """Fours and twos of whole columns, as (first, number)."""
        whole = sum(count == self.isa.lanes for count in counts)
        fours = [(j, 4) for j in range(0, whole - 3, 4)]
        return fours + [(j, 2) for j in range(4 * len(fours), whole - 1, 2)]

    def read(self, source: Any, counts: Sequence[int], place: Place) -> None:
        """Set the accumulators to what `write` stored without finishing."""
        for i in range(self.shape.rows):
            for j, count in enumerate(counts):
                for offset, width in pieces(count, self.isa.lanes):
                    value = load(source, place(i, j, offset), width)
                    store(self._at(i, j), value, [offset], width)

    def _at(self, row: int, col: int) -> Any:
        return self._vectors[row * self.shape.cols + col]

    def _put(self, row: int, col: int, value: Expr) -> None:
        store(self._at(row, col), value, [0], self.isa.lanes)
