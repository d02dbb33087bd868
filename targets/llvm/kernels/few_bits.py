"""Products with weights of 4 or 8 bits that stay so in memory: dequantized in registers, on the way into the sum.

``y[r, c] = sum_k x[r, k] * (q[k, c] * s[b, c] + t[b, c]) + bias[c]`` for the block b that k is in, with
``t = -zero * s``. A vector of weights is widened and scaled once for all rows of a tile. With few rows the time goes by
the bytes of the weights. Two rows of 4-bit weights share a vector of bytes: the even one in the lower halves, the odd
one in the upper.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, named, splat, when
from graphopt.targets.llvm.kernels.epilogue import Epilogue

Array = np.ndarray[Any, Any]
TEMPORARIES = 4


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
    """float32 [blocks, co] -> [blocks, columns * lanes]."""
    padded = np.zeros((len(scale), -(-scale.shape[1] // lanes) * lanes), np.float32)
    padded[:, : scale.shape[1]] = scale
    return padded


def make(p: FewBits, isa: Isa, epilogue: Epilogue, parallel: bool, name: str) -> tirx.PrimFunc:
    """``f(x, weights, s, t, bias[, residual], y)``; bias as `conv.pack_bias` has it."""
    lanes = isa.lanes
    columns = -(-p.co // lanes)
    with function(name) as (f, made):
        x = f.argument("x", [*p.rows, p.k])
        w = f.argument("w", [columns, p.lines, lanes], "uint8")
        s, t = (f.argument(n, [len(p.blocks), columns * lanes]) for n in ("s", "t"))
        b = f.argument("b", [columns * lanes])
        r = f.argument("r", [*p.rows, p.co]) if epilogue.residual else None
        y = f.argument("y", [*p.rows, p.co])
        x, y = f.matrix(x, [*p.rows, p.k]), f.matrix(y, [*p.rows, p.co])
        r = None if r is None else f.matrix(r, [*p.rows, p.co])
        rows = f.product(p.rows)
        free = dataclasses.replace(isa, registers=isa.registers - TEMPORARIES)
        shape = tile.choose(rows if isinstance(rows, int) else 1 << 20, columns, free)
        product = _Product(p, isa, epilogue, x, w, s, t, b, r, y)
        whole = p.co // lanes // shape.cols
        tiles, rest = rows // shape.rows, rows % shape.rows
        panels = [(0, shape.cols, whole)] if whole else []
        panels += [(c, min(shape.cols, columns - c), 1) for c in range(whole * shape.cols, columns, shape.cols)]
        for first, cols, number in panels:
            with loop(tiles * number, parallel=parallel) as i:
                column = first if number == 1 else i // tiles * cols
                product.tile(i % tiles * shape.rows, column, tile.Shape(shape.rows, cols))
            if isinstance(rest, int) and rest == 0:
                continue
            with loop(number, parallel=parallel) as i:
                column = first if number == 1 else i * cols
                if isinstance(rest, int):
                    product.tile(tiles * shape.rows, column, tile.Shape(rest, cols))
                    continue
                for size in [1 << bit for bit in reversed(range((shape.rows - 1).bit_length()))]:
                    with when(rest // size % 2 == 1):
                        row = tiles * shape.rows + rest // (2 * size) * (2 * size)
                        product.tile(row, column, tile.Shape(size, cols))
    return made[0]


@dataclasses.dataclass(frozen=True)
class _Product:
    p: FewBits
    isa: Isa
    epilogue: Epilogue
    x: Any
    w: Any
    s: Any
    t: Any
    b: Any
    r: Any
    y: Any

    def tile(self, row: Expr, column: Expr, shape: tile.Shape) -> None:
        """`shape.rows` rows from `row` on, `shape.cols` vectors of columns from `column` on."""
        p, lanes, columns = self.p, self.isa.lanes, -(-self.p.co // self.isa.lanes)
        acc = tile.Accumulators(shape, self.isa, lambda j: load(self.b, [(column + j) * lanes], lanes))
        whole = p.k // p.block
        with loop(whole) as block:
            self._block(acc, shape, row, column, block, block * p.block, p.block)
        if whole * p.block < p.k:
            self._block(acc, shape, row, column, whole, whole * p.block, p.k - whole * p.block)
        partial = isinstance(column, int) and column + shape.cols == columns
        acc.write(
            [*[lanes] * (shape.cols - 1), p.co - (columns - 1) * lanes if partial else lanes],
            lambda i, j, offset: [row + i, (column + j) * lanes + offset],
            lambda value, at, width: self.epilogue.finish(self.r, value, at, width),
            self.y,
            apart=self.epilogue.long,
        )

    def _block(
        self, acc: tile.Accumulators, shape: tile.Shape, row: Expr, column: Expr, block: Expr, start: Expr, size: int
    ) -> None:
        lanes, each = self.isa.lanes, 2 if self.p.bits == 4 else 1
        columns = range(shape.cols)
        s, t = ([named(load(b, [block, (column + j) * lanes], lanes)) for j in columns] for b in (self.s, self.t))

        def line(at: Expr, count: int) -> None:
            """`count` rows of weights from row `at` on, in one vector of bytes for each column."""
            packed = [load(self.w, [column + j, at // each, 0], lanes) for j in columns]
            wide = [named(tirx.Cast(_vector("int32", lanes), v)) for v in packed]
            for half in range(count):
                q = [_half(v, half, lanes) if each == 2 else v for v in wide]
                real = [named(tirx.Cast(_vector("float32", lanes), q[j]) * s[j] + t[j]) for j in columns]
                acc.step(range(shape.rows), lambda i, k=at + half: self.x[row + i, k], lambda j, real=real: real[j])

        with loop(size // each) as i:
            line(start + i * each, each)
        if size % each:
            line(start + size - 1, 1)


def _half(wide: Expr, half: int, lanes: int) -> Expr:
    """The lower or the upper 4 bits."""
    return wide >> splat(4, lanes, "int32") if half else wide & splat(15, lanes, "int32")


def _vector(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype
