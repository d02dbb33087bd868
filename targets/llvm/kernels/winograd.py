"""Winograd convolution of 3x3 kernels: F(4x4) takes 36 multiplications for the direct form's 144, F(2x2) 16 for 36.

    Y = A^T [ (G g G^T) * (B^T d B) ] A

(A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015) for each m x m tile of the output, d its
(m+2) x (m+2) input tile, g a kernel; summed over input channels, the product in the middle is (m+2)^2 matrix products
[tiles, CI] x [CI, CO]. Tiles go in blocks (see `winograd_scheme.tiles_at_once`); G g G^T is computed when the model is
compiled. Only for stride 1 without dilation. The relative error of F(4x4) is a few 1e-6,
against a few 1e-7 of the direct form.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.packed import Steps, multiply, pad, reshape, run, transpose
from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Isa,
    function,
    load,
    loop,
    prefetch,
    runs,
    scratch,
    splat,
    store,
    vectors,
    when,
)
from graphopt.targets.llvm.kernels.epilogue import Epilogue
from graphopt.targets.llvm.kernels.winograd_scheme import F4, Scheme, tiles_at_once

SHARED_FROM = 4  # blocks to share out among threads; fewer large ones are shared out step by step


def pack(weight: np.ndarray[Any, Any], lanes: int, scheme: Scheme = F4) -> np.ndarray[Any, Any]:
    """[CO, CI, 3, 3] -> G g G^T as [(m+2)^2, blocks, CI, lanes], channels past CO zero; computed in float64."""
    return run(weight, packing(weight.shape, lanes, scheme))


def packing(shape: Sequence[int], lanes: int, scheme: Scheme) -> Steps:
    """The steps of `pack`."""
    ci, blocks = shape[1], -(-shape[0] // lanes)
    return (
        multiply(2, scheme.g), multiply(3, scheme.g), transpose(2, 3, 1, 0), pad(3, blocks * lanes),
        reshape(scheme.a**2, ci, blocks, lanes), transpose(0, 2, 1, 3),
    )  # fmt: skip


def make(
    c: Conv,
    isa: Isa,
    epilogue: Epilogue,
    parallel: bool,
    name: str = "winograd",
    scheme: Scheme = F4,
    shape: tile.Shape | None = None,
) -> tirx.PrimFunc:
    """``f(x, weights, bias[, residual], y)`` for packed weights and bias; `shape` in place of the tile chosen here."""
    a2, across, tiles = scheme.a**2, -(-c.ow // scheme.m), scheme.tiles(c)
    blocks, block = -(-c.co // isa.lanes), tiles_at_once(c, scheme)
    shape = shape or tile.choose(block, blocks, isa)
    with function(name) as (f, made):
        x = f.argument("x", [c.n, c.h, c.w, c.ci])
        w = f.argument("w", [a2, blocks, c.ci, isa.lanes])
        b = f.argument("b", [blocks * isa.lanes])
        residual = f.argument("r", [c.n, c.oh, c.ow, c.co]) if epilogue.residual else None
        y = f.argument("y", [c.n, c.oh, c.ow, c.co])
        per_image = -(-tiles // block)
        within = parallel and (c.n if isinstance(c.n, int) else 1) * per_image < SHARED_FROM
        with loop(f.dim(c.n) * per_image, parallel=parallel and not within) as p:
            n, first = p // per_image, p % per_image * block
            count = tirx.Min(tirx.IntImm("int64", block), tiles - first) if tiles % block else block
            v, m = scratch([a2, odd_lines(block * c.ci)]), scratch([a2, odd_lines(block * blocks * isa.lanes)])
            steps = _Block(scheme, c, isa, epilogue, x, w, b, residual, y, v, m, n)
            with loop(count, parallel=within) as t:
                steps.transform_input((first + t) // across, (first + t) % across, t)
            with loop(a2, parallel=within) as xi:
                steps.multiply(xi, block, shape)
            with loop(count, parallel=within) as t:
                steps.transform_output((first + t) // across, (first + t) % across, t)
    return made[0]


def odd_lines(elements: int) -> int:
    """`elements` rounded up to an odd number of cache lines: a transform's streams then use different cache sets."""
    lines = -(-elements // 16)
    return (lines | 1) * 16


def combine(coefficients: Sequence[float], values: Sequence[Expr], lanes: int) -> Expr:
    """The sum of coefficient times value, without multiplying by 0, 1 or -1."""
    total = None
    for c, v in zip(coefficients, values, strict=True):
        if c == 0:
            continue
        term = v if abs(c) == 1 else v * splat(abs(c), lanes)
        if total is None:
            total = term if c > 0 else splat(0.0, lanes) - term
        else:
            total = total + term if c > 0 else total - term
    return total


@dataclasses.dataclass(frozen=True)
class _Block:
    """The three steps over one block of tiles of image `n`; `v` and `m` hold transformed inputs and products."""

    scheme: Scheme
    c: Conv
    isa: Isa
    epilogue: Epilogue
    x: Any
    w: Any
    b: Any
    residual: Any
    y: Any
    v: Any
    m: Any
    n: Expr

    @property
    def width(self) -> int:
        """Output channels, rounded up to whole vectors."""
        return -(-self.c.co // self.isa.lanes) * self.isa.lanes

    def transform_input(self, row: Expr, column: Expr, t: Expr) -> None:
        """``v[:, t] = B^T d B`` for the tile in that row and column of tiles; outside the image d is zero."""
        c, a = self.c, self.scheme.a
        top, left = row * self.scheme.m - c.pads[0], column * self.scheme.m - c.pads[1]
        inside = tirx.all(top >= 0, left >= 0, top + a <= c.h, left + a <= c.w)

        def plain(i: int, j: int, k: Expr, lanes: int) -> Expr:
            return load(self.x, [self.n, top + i, left + j, k], lanes)

        def clipped(i: int, j: int, k: Expr, lanes: int) -> Expr:
            exists = tirx.all(top + i >= 0, top + i < c.h, left + j >= 0, left + j < c.w)
            return tirx.if_then_else(exists, plain(i, j, k, lanes), splat(0.0, lanes))

        with when(inside):
            runs(c.ci, self.isa.lanes, lambda k, lanes: self._input_run(plain, t, k, lanes))
        with when(tirx.Not(inside)):
            runs(c.ci, self.isa.lanes, lambda k, lanes: self._input_run(clipped, t, k, lanes))

    def _input_run(self, read: Callable[[int, int, Expr, int], Expr], t: Expr, k: Expr, lanes: int) -> None:
        a, bt = self.scheme.a, self.scheme.bt
        half = vectors(a * a, lanes)
        for j in range(a):
            values = kept([read(i, j, k, lanes) for i in range(a)], lanes)
            for i in range(a):
                store(half[i * a + j], combine(bt[i], values, lanes), [0], lanes)
        for i in range(a):
            values = [load(half[i * a + j], [0], lanes) for j in range(a)]
            for j in range(a):
                store(self.v, combine(bt[j], values, lanes), [i * a + j, t * self.c.ci + k], lanes)

    def multiply(self, xi: Expr, block: int, shape: tile.Shape) -> None:
        """``m[xi] = v[xi] @ w[xi]``; rows past the last tile of a partial block are computed and not read."""
        blocks = self.width // self.isa.lanes
        passes = block // shape.rows
        ahead = tile.Ahead.of(shape.cols, passes, 4 * self.scheme.a**2 * self.c.ci * self.c.co) if passes else None

        def columns(column: Expr, cols: int) -> None:
            with loop(passes) as r:
                following = ahead.columns(r) if ahead is not None and cols == shape.cols else []
                self._product(xi, r * shape.rows, column, tile.Shape(shape.rows, cols), following)
            if block % shape.rows:
                last = block % shape.rows
                self._product(xi, block - last, column, tile.Shape(last, cols), [])

        with loop(blocks // shape.cols) as j:
            columns(j * shape.cols, shape.cols)
        if blocks % shape.cols:
            columns(blocks - blocks % shape.cols, blocks % shape.cols)

    def _product(self, xi: Expr, row: Expr, column: Expr, shape: tile.Shape, ahead: list[Expr]) -> None:
        lanes = self.isa.lanes
        acc = tile.Accumulators(shape, self.isa)
        with loop(self.c.ci) as k:
            for j in ahead:
                prefetch(self.w, [xi, column + shape.cols + j, k, 0])
            acc.step(
                range(shape.rows),
                lambda i: self.v[xi, (row + i) * self.c.ci + k],
                lambda j: load(self.w, [xi, column + j, k, 0], lanes),
            )
        acc.write(
            [lanes] * shape.cols,
            lambda i, j, offset: [xi, (row + i) * self.width + (column + j) * lanes + offset],
            lambda value, _place, _width: value,
            self.m,
        )

    def transform_output(self, row: Expr, column: Expr, t: Expr) -> None:
        """``A^T m[:, t] A``, bias and epilogue, stored where the output has such rows and columns."""
        runs(self.c.co, self.isa.lanes, lambda k, lanes: self._output_run(row, column, t, k, lanes))

    def _output_run(self, row: Expr, column: Expr, t: Expr, k: Expr, lanes: int) -> None:
        c, size, a, at = self.c, self.scheme.m, self.scheme.a, self.scheme.at
        half = vectors(size * a, lanes)
        for j in range(a):
            values = kept([load(self.m, [i * a + j, t * self.width + k], lanes) for i in range(a)], lanes)
            for i in range(size):
                store(half[i * a + j], combine(at[i], values, lanes), [0], lanes)
        for i in range(size):
            values = [load(half[i * a + j], [0], lanes) for j in range(a)]
            for j in range(size):
                y, x = row * size + i, column * size + j
                exists = [y < c.oh] * (i > (c.oh - 1) % size) + [x < c.ow] * (j > (c.ow - 1) % size)
                with when(tirx.all(*exists)) if exists else contextlib.nullcontext():
                    place = [self.n, y, x, k]
                    value = combine(at[j], values, lanes) + load(self.b, [k], lanes)
                    store(self.y, self.epilogue.finish(self.residual, value, place, lanes), place, lanes)


def kept(values: list[Expr], lanes: int) -> list[Expr]:
    """The values computed once and kept in registers."""
    kept = vectors(len(values), lanes)
    for place, value in zip(kept, values, strict=True):
        store(place, value, [0], lanes)
    return [load(place, [0], lanes) for place in kept]
