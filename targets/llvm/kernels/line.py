"""Convolution along a line with a long kernel: a matrix product of the overlapping windows with the weights.

Channels-last, the window of an output position is one run of KW * CI values, and the next position's begins
stride * CI further on: ``y[ow] = x[ow * stride * CI :][: KW * CI] @ w``. Nothing is gathered; the line is copied once
between zeros. Loops are those of `gemm`: short blocks of the inner dimension, panels of columns, tiles of rows; partial
sums wait in the output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.packed import Steps, reshape, run
from graphopt.targets.llvm.kernels import beside, conv, tile
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, runs, scratch, splat, store
from graphopt.targets.llvm.kernels.epilogue import Epilogue

INNER = 640  # longest block of the inner dimension, as in `gemm`
LONG = 16  # taps from which on the direct form's borders, written out tap by tap, are too much code


def applies(c: Conv) -> bool:
    """One line, a long kernel without dilation."""
    return c.h == c.oh == c.kernel[0] == 1 and c.kernel[1] >= LONG and c.dilations[1] == 1 and c.group == 1


def pack(weight: np.ndarray[Any, Any], lanes: int) -> np.ndarray[Any, Any]:
    """[CO, CI, 1, KW] -> [blocks, KW * CI, lanes], channels past CO zero."""
    return run(weight, packing(weight.shape, lanes))


def packing(shape: Sequence[int], lanes: int) -> Steps:
    """The steps of `pack`."""
    return *conv.packing(shape, lanes), reshape(-(-shape[0] // lanes), shape[3] * shape[1], lanes)


def make(
    c: Conv, isa: Isa, epilogue: Epilogue, parallel: bool, name: str = "line", shape: tile.Shape | None = None
) -> tirx.PrimFunc:
    """``f(x, weights, bias[, residual], y)`` for packed weights and bias; x [n, 1, w, ci], y [n, 1, ow, co].

    `shape`: a tile in place of the one chosen here.
    """
    p = beside.columns(c, isa.lanes)
    k = beside.wide(c, p)
    blocks, inner = -(-k.co // isa.lanes), k.kernel[1] * c.ci
    step, shape = block(inner), shape or tile.choose(c.ow // p, blocks, isa)
    with function(name) as (f, made):
        x = f.argument("x", [c.n, 1, c.w, c.ci])
        w = f.argument("w", [blocks, inner, isa.lanes])
        b = f.argument("b", [blocks * isa.lanes])
        residual = f.argument("r", [c.n, 1, c.ow, c.co]) if epilogue.residual else None
        y = f.argument("y", [c.n, 1, c.ow, c.co])
        x, y = f.matrix(x, [c.n, 1, c.w * c.ci]), f.matrix(y, [c.n, 1, c.ow * c.co])
        residual = None if residual is None else f.matrix(residual, [c.n, 1, c.ow * c.co])
        padded = scratch([1, (k.pads[1] + k.w + k.pads[3]) * k.ci])
        with loop(f.dim(c.n)) as n:
            pad(k, isa, x, padded, n)
            product = _Product(k, c.ow // p, c.ow % p * c.co, isa, epilogue, shape, step, padded, w, b, residual, y, n)
            count = inner // step
            product.emit(0, count == 1, parallel)
            if count > 2:
                with loop(count - 1, start=1) as i:  # all but the first and the last
                    product.emit(i, False, parallel)
            if count > 1:
                product.emit(count - 1, True, parallel)
    return made[0]


def block(inner: int) -> int:
    """The largest divisor of `inner` up to `INNER`, unless that is a poor one."""
    best = max(d for d in range(1, INNER + 1) if inner % d == 0)
    return best if best >= INNER // 8 else inner


def pad(c: Conv, isa: Isa, x: Any, padded: Any, n: Expr) -> None:
    """Line `n` of `x` between zeros."""
    left, line, right = (size * c.ci for size in (c.pads[1], c.w, c.pads[3]))
    runs(left, isa.lanes, lambda at, width: store(padded, splat(0.0, width), [0, at], width))
    runs(line, isa.lanes, lambda at, width: store(padded, load(x, [n, at], width), [0, left + at], width))
    runs(right, isa.lanes, lambda at, width: store(padded, splat(0.0, width), [0, left + line + at], width))


@dataclasses.dataclass(frozen=True)
class _Product:
    """The product for one line made wide (see `beside`): `columns` whole ones, and one with `part` channels or none."""

    c: Conv
    columns: int
    part: int
    isa: Isa
    epilogue: Epilogue
    shape: tile.Shape
    step: int
    x: Any
    w: Any
    b: Any
    residual: Any
    y: Any
    n: Expr

    def emit(self, k: Expr, last: bool, parallel: bool) -> None:
        """Block `k` of the inner dimension: all panels of columns, each over all rows."""
        c, (rows, cols) = self.c, (self.shape.rows, self.shape.cols)
        blocks, whole = -(-c.co // self.isa.lanes), c.co // self.isa.lanes // cols
        tiles, rest = self.columns // rows, self.columns % rows
        if whole:
            with loop(tiles * whole, parallel=parallel) as p:
                self._tile(p % tiles * rows, p // tiles * cols, self.shape, k, last)
            if rest:
                with loop(whole, parallel=parallel) as p:
                    self._tile(self.columns - rest, p * cols, tile.Shape(rest, cols), k, last)
        for first in range(whole * cols, blocks, cols):
            some = min(cols, blocks - first)
            with loop(tiles, parallel=parallel) as t:
                self._tile(t * rows, first, tile.Shape(rows, some), k, last)
            if rest:
                self._tile(self.columns - rest, first, tile.Shape(rest, some), k, last)
        if self.part:
            self._tile(self.columns, 0, tile.Shape(1, -(-self.part // self.isa.lanes)), k, last, self.part)

    def _tile(
        self, row: Expr, block: Expr, shape: tile.Shape, k: Expr, last: bool, channels: int | None = None
    ) -> None:
        c, lanes = self.c, self.isa.lanes
        channels, stride = channels or c.co, c.strides[1] * c.ci
        partial = isinstance(block, int) and block + shape.cols == -(-channels // lanes)
        counts = [*[lanes] * (shape.cols - 1), (channels - 1) % lanes + 1 if partial else lanes]

        def place(i: int, j: int, offset: int) -> list[Expr]:
            return [self.n, (row + i) * c.co + (block + j) * lanes + offset]

        acc = tile.Accumulators(shape, self.isa, lambda j: load(self.b, [(block + j) * lanes], lanes))
        if not (isinstance(k, int) and k == 0):
            acc.read(self.y, counts, place)
        with loop(self.step) as i:
            at = k * self.step + i
            acc.step(
                range(shape.rows),
                lambda r: self.x[0, (row + r) * stride + at],
                lambda j: load(self.w, [block + j, at, 0], lanes),
            )
        finish = self.epilogue.finish
        acc.write(
            counts, place, lambda value, to, width: finish(self.residual, value, to, width) if last else value,
            self.y, apart=last and self.epilogue.long,
        )  # fmt: skip
