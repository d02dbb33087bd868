"""Matrix product with a constant right side: dense layers, and 1x1 convolutions without stride or padding.

Loops after BLIS (F. Van Zee, R. van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS Functionality",
2015): blocks of the inner dimension so short that a panel of packed weights stays in the nearer caches, panels of
columns, tiles of rows. Partial sums of a block wait in the output; bias goes in with the first block, the epilogue
with the last.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, prefetch, when
from graphopt.targets.llvm.kernels.epilogue import Epilogue

MANY = 1 << 20  # rows that an open number of them counts as
INNER = 640  # longest block of the inner dimension: 14 rows of it fill an L1 cache of 36 KiB


@dataclasses.dataclass(frozen=True)
class Gemm:
    """[*rows, k] @ [k, co] -> [*rows, co]; dimensions in `rows` are numbers or names of symbolic ones."""

    rows: tuple[int | str, ...]
    k: int
    co: int


def pack(weight: np.ndarray[Any, Any], lanes: int) -> np.ndarray[Any, Any]:
    """[K, CO] -> [blocks, K, lanes], columns past CO zero."""
    k, co = weight.shape
    blocks = -(-co // lanes)
    padded = np.zeros((k, blocks * lanes), np.float32)
    padded[:, :co] = weight
    return np.ascontiguousarray(padded.reshape(k, blocks, lanes).transpose(1, 0, 2))


def make(
    g: Gemm, isa: Isa, epilogue: Epilogue, parallel: bool, name: str = "gemm", shape: tile.Shape | None = None
) -> tirx.PrimFunc:
    """``f(x, weights, bias[, residual], y)`` for packed weights and bias (see `conv.pack_bias`).

    `shape`: a tile in place of the one chosen here.
    """
    with function(name) as (f, made):
        blocks = -(-g.co // isa.lanes)
        x = f.argument("x", [*g.rows, g.k])
        w = f.argument("w", [blocks, g.k, isa.lanes])
        b = f.argument("b", [blocks * isa.lanes])
        residual = f.argument("r", [*g.rows, g.co]) if epilogue.residual else None
        y = f.argument("y", [*g.rows, g.co])
        x, y = f.matrix(x, [*g.rows, g.k]), f.matrix(y, [*g.rows, g.co])
        residual = None if residual is None else f.matrix(residual, [*g.rows, g.co])
        rows = f.product(g.rows)
        shape = shape or tile.choose(rows if isinstance(rows, int) else MANY, blocks, isa)
        panels = _Panels(g, isa, epilogue, shape, rows, x, w, b, residual, y)
        for start, stop in _inner_blocks(g):
            panels.emit(start, stop, parallel)
    return made[0]


def _inner_blocks(g: Gemm) -> list[tuple[int, int]]:
    """The inner dimension in equal blocks of at most `INNER`."""
    count = math.ceil(g.k / INNER)
    size = math.ceil(g.k / count)
    return [(start, min(start + size, g.k)) for start in range(0, g.k, size)]


@dataclasses.dataclass(frozen=True)
class _Panels:
    g: Gemm
    isa: Isa
    epilogue: Epilogue
    shape: tile.Shape
    rows: Expr
    x: Any
    w: Any
    b: Any
    residual: Any
    y: Any

    def emit(self, start: int, stop: int, parallel: bool) -> None:
        """One block of the inner dimension: all panels of columns, each over all rows."""
        blocks, cols = -(-self.g.co // self.isa.lanes), self.shape.cols
        whole = self.g.co // self.isa.lanes // cols  # panels in which every column exists
        tiles, rest = self.rows // self.shape.rows, self.rows % self.shape.rows
        if whole:
            ahead = tile.Ahead.of(cols, tiles, self.g.k * self.g.co * 4)
            with loop(tiles * whole, parallel=parallel) as p:
                t = p % tiles
                self._tile(t * self.shape.rows, p // tiles * cols, self.shape, start, stop, ahead and ahead.columns(t))
            self._rest(tiles, rest, whole, 0, cols, start, stop)
        for first in range(whole * cols, blocks, cols):
            last = min(cols, blocks - first)
            with loop(tiles, parallel=parallel) as t:
                self._tile(t * self.shape.rows, first, tile.Shape(self.shape.rows, last), start, stop)
            self._rest(tiles, rest, 1, first, last, start, stop)

    def _rest(self, tiles: Expr, rest: Expr, panels: int, first: int, cols: int, start: int, stop: int) -> None:
        """Rows past the last whole tile: one smaller tile, or tiles of 8, 4, 2, 1 if their number is not known."""
        done = tiles * self.shape.rows
        if isinstance(rest, int):
            if rest:
                with loop(panels) as p:
                    self._tile(done, _at(first, p, cols, panels), tile.Shape(rest, cols), start, stop)
            return
        sizes = [1 << bit for bit in reversed(range((self.shape.rows - 1).bit_length()))]
        with loop(panels) as p:
            for size in sizes:
                row, block = done + rest // (2 * size) * (2 * size), _at(first, p, cols, panels)
                with when(rest // size % 2 == 1):
                    self._tile(row, block, tile.Shape(size, cols), start, stop)

    def _tile(
        self, row: Expr, block: Expr, shape: tile.Shape, start: int, stop: int, ahead: list[Expr] | None = None
    ) -> None:
        lanes, g = self.isa.lanes, self.g
        counts = self._columns(block, shape.cols)
        acc = tile.Accumulators(shape, self.isa, lambda j: load(self.b, [(block + j) * lanes], lanes))
        if start:
            acc.read(self.y, counts, lambda i, j, offset: [row + i, (block + j) * lanes + offset])
        with loop(stop, start=start) as k:
            for column in ahead or ():
                prefetch(self.w, [block + shape.cols + column, k, 0])
            acc.step(range(shape.rows), lambda i: self.x[row + i, k], lambda j: load(self.w, [block + j, k, 0], lanes))
        last = stop == g.k
        acc.write(
            counts,
            lambda i, j, offset: [row + i, (block + j) * lanes + offset],
            lambda value, at, width: self.epilogue.finish(self.residual, value, at, width) if last else value,
            self.y,
            apart=last and self.epilogue.long,
        )

    def _columns(self, block: Expr, cols: int) -> Sequence[int]:
        """How many elements each vector column has in the output; only the very last one may be partial."""
        lanes, blocks = self.isa.lanes, -(-self.g.co // self.isa.lanes)
        if isinstance(block, int) and block + cols == blocks:
            return [*[lanes] * (cols - 1), self.g.co - (blocks - 1) * lanes]
        return [lanes] * cols


def _at(first: int, panel: Expr, cols: int, panels: int) -> Expr:
    return first if panels == 1 else panel * cols + first
