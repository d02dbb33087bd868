"""Matrix product with a constant right side: dense layers, and 1x1 convolutions without stride or padding.

Loops after BLIS (F. Van Zee, R. van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS Functionality",
2015): blocks of the inner dimension, blocks of rows, panels of columns, tiles of rows. Partial sums of a block of the
inner dimension wait in the output; bias goes in with the first, the epilogue with the last.

Weights that stay in the L2 cache pass by once for each block of a few tiles, whose rows and results then come from and
go to memory once, in order. Larger weights pass by once for all rows, or for as many as fit that cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.packed import Steps, pad, reshape, run, transpose
from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, i64, load, loop, prefetch, when
from graphopt.targets.llvm.kernels.epilogue import Epilogue

MANY = 1 << 20  # rows that an open number of them counts as
INNER = 1024  # longest block of the inner dimension: a few rows of it fill an L1 cache of 48 KiB
RESIDENT = 3 << 18  # bytes of weights that stay in the L2 cache from block to block of rows
TILES = 8  # of rows in a block, when they do
ROWS = 1 << 20  # bytes of rows in a block, when they don't
UNITS = 8  # pieces to share out among threads, at least, where there are as many tiles


@dataclasses.dataclass(frozen=True)
class Source:
    """Channels [start, start + count) of an input of `channels` channels."""

    channels: int
    start: int
    count: int


@dataclasses.dataclass(frozen=True)
class Gemm:
    """[*rows, k] @ [k, co] -> [*rows, co]; dimensions in `rows` are numbers or names of symbolic ones.

    `sources`: what the k columns of the left side are, one after the other; empty where they are one input's.
    """

    rows: tuple[int | str, ...]
    k: int
    co: int
    sources: tuple[Source, ...] = ()


def pack(weight: np.ndarray[Any, Any], lanes: int) -> np.ndarray[Any, Any]:
    """[K, CO] -> [blocks, K, lanes], columns past CO zero."""
    k, co = weight.shape
    return run(weight, packing(k, co, lanes))


def packing(k: int, co: int, lanes: int) -> Steps:
    """The steps of `pack`."""
    blocks = -(-co // lanes)
    return pad(1, blocks * lanes), reshape(k, blocks, lanes), transpose(1, 0, 2)


def make(
    g: Gemm, isa: Isa, epilogue: Epilogue, parallel: bool, name: str = "gemm", shape: tile.Shape | None = None
) -> tirx.PrimFunc:
    """``f(x, weights, bias[, residual], y)`` for packed weights and bias (see `conv.pack_bias`), an x for each source.

    `shape`: a tile in place of the one chosen here.
    """
    with function(name) as (f, made):
        blocks = -(-g.co // isa.lanes)
        sources = g.sources or (Source(g.k, 0, g.k),)
        arguments = [f.argument(f"x{i}", [*g.rows, source.channels]) for i, source in enumerate(sources)]
        w = f.argument("w", [blocks, g.k, isa.lanes])
        b = f.argument("b", [blocks * isa.lanes])
        residual = f.argument("r", [*g.rows, g.co]) if epilogue.residual else None
        y = f.argument("y", [*g.rows, g.co])
        inputs = [f.matrix(x, [*g.rows, s.channels]) for x, s in zip(arguments, sources, strict=True)]
        y = f.matrix(y, [*g.rows, g.co])
        residual = None if residual is None else f.matrix(residual, [*g.rows, g.co])
        rows = f.product(g.rows)
        shape = shape or tile.choose(rows if isinstance(rows, int) else MANY, blocks, isa)
        panels = _Panels(g, isa, epilogue, shape, rows, list(zip(inputs, sources, strict=True)), w, b, residual, y)
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
    inputs: Sequence[tuple[Any, Source]]
    w: Any
    b: Any
    residual: Any
    y: Any

    def emit(self, start: int, stop: int, parallel: bool) -> None:
        """One block of the inner dimension, through all panels of columns."""
        blocks, shape = -(-self.g.co // self.isa.lanes), self.shape
        whole = self.g.co // self.isa.lanes // shape.cols  # panels in which every column exists
        if whole:
            self._panels(whole, 0, shape, start, stop, parallel)
        for first in range(whole * shape.cols, blocks, shape.cols):
            last = tile.Shape(shape.rows, min(shape.cols, blocks - first))
            self._panels(1, first, last, start, stop, parallel)

    def _panels(self, panels: int, first: int, shape: tile.Shape, start: int, stop: int, parallel: bool) -> None:
        """`panels` panels from column `first` on: blocks of rows, each through all of them."""
        nbytes, known = 4 * self.g.k * self.g.co, isinstance(self.rows, int)
        tiles, rest = self.rows // shape.rows, self.rows % shape.rows
        each = TILES if nbytes <= RESIDENT else max(1, ROWS // (4 * self.g.k * shape.rows))
        if known:  # blocks of about one size
            each = -(-tiles // max(-(-tiles // each), -(-UNITS // panels) if parallel else 1))
        blocks = -(-tiles // each) if known else tirx.Max(i64(1), tirx.ceildiv(tiles, i64(each)))
        ahead = tile.Ahead.of(shape.cols, each, nbytes) if panels > 1 else None
        with loop(blocks * panels, parallel=parallel) as p:
            block, column = p // panels, _at(first, p % panels, shape.cols, panels)
            whole = known and tiles % each == 0
            with loop(each if whole else tirx.Min(i64(each), tiles - block * each)) as t:
                columns = None if ahead is None else ahead.columns(t)
                self._tile((block * each + t) * shape.rows, column, shape, start, stop, columns)
            if not known or rest:
                with contextlib.nullcontext() if known and blocks == 1 else when(block == blocks - 1):
                    self._rest(tiles * shape.rows, rest, column, shape, start, stop)

    def _rest(self, row: Expr, rest: Expr, column: Expr, shape: tile.Shape, start: int, stop: int) -> None:
        """Rows past the last whole tile: one smaller tile, or tiles of 8, 4, 2, 1 if their number is not known."""
        if isinstance(rest, int):
            self._tile(row, column, tile.Shape(rest, shape.cols), start, stop)
            return
        for size in [1 << bit for bit in reversed(range((shape.rows - 1).bit_length()))]:
            with when(rest // size % 2 == 1):
                self._tile(row + rest // (2 * size) * (2 * size), column, tile.Shape(size, shape.cols), start, stop)

    def _tile(
        self, row: Expr, block: Expr, shape: tile.Shape, start: int, stop: int, ahead: list[Expr] | None = None
    ) -> None:
        lanes, g = self.isa.lanes, self.g
        counts = self._columns(block, shape.cols)
        acc = tile.Accumulators(shape, self.isa, lambda j: load(self.b, [(block + j) * lanes], lanes))
        if start:
            acc.read(self.y, counts, lambda i, j, offset: [row + i, (block + j) * lanes + offset])
        last = stop == g.k
        if last and self.residual is not None:  # it was written long ago, and waits in a farther cache
            for i in range(shape.rows):
                for j in range(shape.cols):
                    prefetch(self.residual, [row + i, (block + j) * lanes])
        self._steps(acc, row, block, start, stop, ahead or [])
        acc.write(
            counts,
            lambda i, j, offset: [row + i, (block + j) * lanes + offset],
            lambda value, at, width: self.epilogue.finish(self.residual, value, at, width) if last else value,
            self.y,
            apart=last and self.epilogue.long,
        )

    def _steps(
        self, acc: tile.Accumulators, row: Expr, block: Expr, start: int, stop: int, ahead: Sequence[Expr]
    ) -> None:
        """Inner dimension [start, stop), source by source."""
        rows, lanes = acc.shape.rows, self.isa.lanes

        def steps(x: Any, low: int, high: int, shift: int) -> None:
            with loop(high, start=low) as k:
                for column in ahead:
                    prefetch(self.w, [block + acc.shape.cols + column, k, 0])
                acc.step(range(rows), lambda i: x[row + i, k + shift], lambda j: load(self.w, [block + j, k, 0], lanes))

        first = 0
        for x, source in self.inputs:
            low, high = max(start, first), min(stop, first + source.count)
            if low < high:
                steps(x, low, high, source.start - first)
            first += source.count

    def _columns(self, block: Expr, cols: int) -> Sequence[int]:
        """How many elements each vector column has in the output; only the very last one may be partial."""
        lanes, blocks = self.isa.lanes, -(-self.g.co // self.isa.lanes)
        if isinstance(block, int) and block + cols == blocks:
            return [*[lanes] * (cols - 1), self.g.co - (blocks - 1) * lanes]
        return [lanes] * cols


def _at(first: int, panel: Expr, cols: int, panels: int) -> Expr:
    return first if panels == 1 else panel * cols + first
