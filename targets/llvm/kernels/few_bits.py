"""Products with weights of 4 or 8 bits that stay so in memory: dequantized in registers, on the way into the sum.

``y[r, c] = sum_k x[r, k] * (q[k, c] * s[b, c] + t[b, c]) + bias[c]`` for the block b that k is in, with
``t = -z[b, c] * s[b, c]`` for a byte z. A vector of weights is widened and scaled once for all rows of a tile: with few
rows the time goes by the bytes of the weights. From `MANY` rows on it goes by the products, and weights are dequantized
once for all rows, a panel of columns at a time. Two rows of 4-bit weights share a vector of bytes: the even one in the
lower halves, the odd one in the upper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, named, scratch, splat, store, when
from graphopt.targets.llvm.kernels.epilogue import Epilogue
from graphopt.targets.llvm.kernels.requantise import as_float

Array = np.ndarray[Any, Any]
TEMPORARIES = 4
MANY = 16  # rows


@dataclasses.dataclass(frozen=True)
class FewBits:
    """``[*rows, k] x [k, co]`` with weights of `bits` bits, a scale for each `block` of k."""

    rows: tuple[int | str, ...]
    k: int
    co: int
    bits: int
    block: int

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """The blocks of k as (start, size)."""
        return [(start, min(self.block, self.k - start)) for start in range(0, self.k, self.block)]

    @property
    def lines(self) -> int:
        """Vectors of bytes in a column of vectors."""
        return -(-self.k // 2) if self.bits == 4 else self.k


def pack(q: Array, p: FewBits, lanes: int) -> Array:
    """Unsigned integers [k, co] -> uint8 [columns, lines, lanes], zeros past the end."""
    columns = -(-p.co // lanes)
    rows = 2 * p.lines if p.bits == 4 else p.k
    padded = np.zeros((rows, columns * lanes), np.uint8)
    padded[: p.k, : p.co] = q
    if p.bits == 4:
        padded = padded[0::2] | padded[1::2] << 4
    return np.ascontiguousarray(padded.reshape(p.lines, columns, lanes).transpose(1, 0, 2))


def pack_scale(scale: Array, lanes: int) -> Array:
    """Scales or zero points [blocks, co] -> [blocks, columns * lanes]."""
    padded = np.zeros((len(scale), -(-scale.shape[1] // lanes) * lanes), scale.dtype)
    padded[:, : scale.shape[1]] = scale
    return padded


def make(p: FewBits, isa: Isa, epilogue: Epilogue, parallel: bool, name: str) -> tirx.PrimFunc:
    """``f(x, weights, s, z, bias[, residual], y)``; bias as `conv.pack_bias` has it."""
    lanes = isa.lanes
    columns = -(-p.co // lanes)
    with function(name) as (f, made):
        x = f.argument("x", [*p.rows, p.k])
        w = f.argument("w", [columns, p.lines, lanes], "uint8")
        s = f.argument("s", [len(p.blocks), columns * lanes])
        z = f.argument("z", [len(p.blocks), columns * lanes], "uint8")
        b = f.argument("b", [columns * lanes])
        r = f.argument("r", [*p.rows, p.co]) if epilogue.residual else None
        y = f.argument("y", [*p.rows, p.co])
        x, y = f.matrix(x, [*p.rows, p.k]), f.matrix(y, [*p.rows, p.co])
        r = None if r is None else f.matrix(r, [*p.rows, p.co])
        rows = f.product(p.rows)
        product = _Product(p, isa, epilogue, x, w, s, z, b, r, y)
        if isinstance(rows, int):
            product.many(rows, parallel) if rows >= MANY else product.few(rows, parallel)
        else:
            rows = named(rows)
            with when(rows >= MANY):
                product.many(rows, parallel)
            with when(rows < MANY):
                product.few(rows, parallel)
    return made[0]


@dataclasses.dataclass(frozen=True)
class _Product:
    p: FewBits
    isa: Isa
    epilogue: Epilogue
    x: Any
    w: Any
    s: Any
    z: Any
    b: Any
    r: Any
    y: Any

    def few(self, rows: Expr, parallel: bool) -> None:
        """Weights dequantized for each tile."""
        free = dataclasses.replace(self.isa, registers=self.isa.registers - TEMPORARIES)
        shape = self._shape(rows, free)
        for first, cols, number in self._panels(shape.cols):
            with loop(number, parallel=parallel) as i:
                column = first if number == 1 else i * cols
                with loop(rows // shape.rows) as t:
                    self.tile(t * shape.rows, column, tile.Shape(shape.rows, cols))
                self._rest(rows, column, tile.Shape(shape.rows, cols))

    def many(self, rows: Expr, parallel: bool) -> None:
        """Weights dequantized once, for a panel of columns that all rows are multiplied with then."""
        lanes, shape = self.isa.lanes, self._shape(rows, self.isa)
        shared = None if parallel else scratch([self.p.k, shape.cols * lanes])
        for first, cols, number in self._panels(shape.cols):
            with loop(number, parallel=parallel) as i:
                column = first if number == 1 else i * cols
                real = scratch([self.p.k, shape.cols * lanes]) if shared is None else shared
                self._dequantize(real, column, cols)
                with loop(rows // shape.rows) as t:
                    self.tile(t * shape.rows, column, tile.Shape(shape.rows, cols), real)
                self._rest(rows, column, tile.Shape(shape.rows, cols), real)

    def _rest(self, rows: Expr, column: Expr, shape: tile.Shape, real: Any = None) -> None:
        """The rows past whole tiles."""
        rest = rows % shape.rows
        if isinstance(rest, int):
            if rest:
                self.tile(rows - rest, column, tile.Shape(rest, shape.cols), real)
            return
        for size in [1 << bit for bit in reversed(range((shape.rows - 1).bit_length()))]:
            with when(rest // size % 2 == 1):
                row = rows // shape.rows * shape.rows + rest // (2 * size) * (2 * size)
                self.tile(row, column, tile.Shape(size, shape.cols), real)

    def _shape(self, rows: Expr, isa: Isa) -> tile.Shape:
        return tile.choose(rows if isinstance(rows, int) else 1 << 20, -(-self.p.co // isa.lanes), isa)

    def _panels(self, cols: int) -> list[tuple[int, int, int]]:
        """Panels of so many vectors as (first, vectors, number): whole ones, and the rest."""
        columns, whole = -(-self.p.co // self.isa.lanes), self.p.co // self.isa.lanes // cols
        rest = [(first, min(cols, columns - first), 1) for first in range(whole * cols, columns, cols)]
        return ([(0, cols, whole)] if whole else []) + rest

    def _dequantize(self, real: Any, column: Expr, cols: int) -> None:
        """Panel `column` of the weights into `real`, [k, vectors]."""
        lanes = self.isa.lanes

        def put(k: Expr, j: int, value: Expr) -> None:
            store(real, value, [k, j * lanes], lanes)

        self._over_blocks(column, range(cols), lambda k, values: [put(k, j, v) for j, v in enumerate(values)])

    def tile(self, row: Expr, column: Expr, shape: tile.Shape, real: Any = None) -> None:
        """`shape.rows` rows from `row` on, `shape.cols` vectors of columns from `column` on.

        `real`: their dequantized weights, if there are any.
        """
        p, lanes, columns = self.p, self.isa.lanes, -(-self.p.co // self.isa.lanes)
        acc = tile.Accumulators(shape, self.isa, lambda j: load(self.b, [(column + j) * lanes], lanes))

        def step(k: Expr, weights: Callable[[int], Expr]) -> None:
            acc.step(range(shape.rows), lambda i: self.x[row + i, k], weights)

        if real is None:
            self._over_blocks(column, range(shape.cols), lambda k, values: step(k, lambda j: values[j]))
        else:
            with loop(p.k) as k:
                step(k, lambda j: load(real, [k, j * lanes], lanes))
        partial = isinstance(column, int) and column + shape.cols == columns
        acc.write(
            [*[lanes] * (shape.cols - 1), p.co - (columns - 1) * lanes if partial else lanes],
            lambda i, j, offset: [row + i, (column + j) * lanes + offset],
            lambda value, at, width: self.epilogue.finish(self.r, value, at, width),
            self.y,
            apart=self.epilogue.long,
        )

    def _over_blocks(self, column: Expr, columns: range, body: Callable[[Expr, list[Expr]], Any]) -> None:
        """``body(k, weights)`` for every k, with a dequantized vector for each of `columns` from `column` on."""
        p = self.p
        whole = p.k // p.block
        with loop(whole) as block:
            self._block(column, columns, block, block * p.block, p.block, body)
        if whole * p.block < p.k:
            self._block(column, columns, whole, whole * p.block, p.k - whole * p.block, body)

    def _block(
        self,
        column: Expr,
        columns: range,
        block: Expr,
        start: Expr,
        size: int,
        body: Callable[[Expr, list[Expr]], Any],
    ) -> None:
        lanes, each = self.isa.lanes, 2 if self.p.bits == 4 else 1
        s, z = ([load(b, [block, (column + j) * lanes], lanes) for j in columns] for b in (self.s, self.z))
        s = [named(v) for v in s]
        t = [named(splat(0.0, lanes) - as_float(v, lanes) * s[j]) for j, v in enumerate(z)]

        def line(at: Expr, count: int) -> None:
            """`count` rows of weights from row `at` on, in one vector of bytes for each column."""
            packed = [load(self.w, [column + j, at // each, 0], lanes) for j in columns]
            wide = [named(tirx.Cast(_vector("int32", lanes), v)) for v in packed]
            for half in range(count):
                q = [_half(v, half, lanes) if each == 2 else v for v in wide]
                body(at + half, [named(tirx.Cast(_vector("float32", lanes), q[j]) * s[j] + t[j]) for j in columns])

        if size >= each:
            with loop(size // each) as i:
                line(start + i * each, each)
        if size % each:
            line(start + size - 1, 1)


def _half(wide: Expr, half: int, lanes: int) -> Expr:
    """The lower or the upper 4 bits."""
    return wide >> splat(4, lanes, "int32") if half else wide & splat(15, lanes, "int32")


def _vector(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype
