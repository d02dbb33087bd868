"""Winograd convolution F(4x4, 3x3): 36 multiplications where the direct form takes 144.

    Y = A^T [ (G g G^T) * (B^T d B) ] A

(A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015) for each 4x4 tile of the output, d its
6x6 input tile, g a 3x3 kernel; summed over input channels, the product in the middle is 36 matrix products
[tiles, CI] x [CI, CO]. Tiles go in blocks whose transformed inputs and products stay in the L2 cache; G g G^T is
computed when the model is compiled. Only for stride 1 without dilation. The relative error is a few 1e-6, against a few
1e-7 of the direct form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, registers, scratch, splat, store, when
from graphopt.targets.llvm.kernels.epilogue import Epilogue

M, A = 4, 6  # outputs and inputs of a tile along one axis
BT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
AT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
CACHE = 3 << 19  # bytes of L2 for a block's transformed inputs and products
RESIDENT = 1 << 20  # bytes of transformed weights that stay in L2 from block to block


def applies(c: Conv, isa: Isa) -> bool:
    """3x3, stride 1, whole vectors of channels."""
    ones = c.strides == c.dilations == (1, 1)
    return (
        c.kernel == (3, 3)
        and ones
        and c.group == 1
        and c.ci % isa.lanes == 0
        and c.co % isa.lanes == 0
        and max(c.pads) <= 2
    )


def pays(c: Conv) -> bool:
    """Whether the transforms and the larger weights cost less than the multiplications saved.

    The transformed weights are four times larger and are read once for each block of tiles: with few tiles, fetching
    them takes longer than the direct form.
    """
    return -(-c.oh // M) * -(-c.ow // M) >= 9 and min(c.ci, c.co) >= 16


def pack(weight: np.ndarray[Any, Any], lanes: int) -> np.ndarray[Any, Any]:
    """[CO, CI, 3, 3] -> G g G^T as [36, blocks, CI, lanes], computed in float64."""
    co, ci = weight.shape[:2]
    u = np.einsum("ir,ocrs,js->ijco", np.array(G), weight.astype(np.float64), np.array(G), optimize=True)
    packed = u.reshape(A * A, ci, co // lanes, lanes).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(packed, dtype=np.float32)


def make(c: Conv, isa: Isa, epilogue: Epilogue, parallel: bool, name: str = "winograd") -> tirx.PrimFunc:
    """``f(x, weights, bias[, residual], y)`` for packed weights and bias."""
    down, across = -(-c.oh // M), -(-c.ow // M)
    tiles = down * across
    blocks = c.co // isa.lanes
    block = _block(tiles, c)
    shape = tile.choose(block, blocks, isa)
    with function(name) as (f, made):
        x = f.argument("x", [c.n, c.h, c.w, c.ci])
        w = f.argument("w", [A * A, blocks, c.ci, isa.lanes])
        b = f.argument("b", [c.co])
        residual = f.argument("r", [c.n, c.oh, c.ow, c.co]) if epilogue.residual else None
        y = f.argument("y", [c.n, c.oh, c.ow, c.co])
        batch = f.symbol(c.n) if isinstance(c.n, str) else c.n
        per_image = -(-tiles // block)
        with loop(batch * per_image, parallel=parallel) as p:
            n, first = p // per_image, p % per_image * block
            count = tirx.Min(tirx.IntImm("int64", block), tiles - first) if tiles % block else block
            v, m = scratch([A * A, _stride(block * c.ci)]), scratch([A * A, _stride(block * c.co)])
            with loop(count) as t:
                at = (first + t) // across, (first + t) % across
                _input_transform(c, isa, x, v, n, at, t)
            with loop(A * A) as xi:
                _products(isa, shape, block, c, v, w, m, xi)
            with loop(count) as t:
                at = (first + t) // across, (first + t) % across
                _output_transform(c, isa, epilogue, m, b, residual, y, n, at, t)
    return made[0]


def _block(tiles: int, c: Conv) -> int:
    """Tiles in a block, all blocks of about one size.

    Small weights stay in the L2 cache beside a block of 14; large ones come from further away for each block, so
    blocks are as large as the L2 cache allows.
    """
    resident = A * A * c.ci * c.co * 4 <= RESIDENT
    most = 14 if resident else max(14, CACHE // (A * A * (c.ci + c.co) * 4))
    return math.ceil(tiles / math.ceil(tiles / most))


def _stride(elements: int) -> int:
    """`elements` rounded up to an odd number of cache lines: a transform's 36 streams then use different cache sets."""
    lines = -(-elements // 16)
    return (lines | 1) * 16


def _combine(coefficients: Sequence[int], values: Sequence[Expr], lanes: int) -> Expr:
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


def _input_transform(c: Conv, isa: Isa, x: Any, v: Any, n: Expr, at: tuple[Expr, Expr], t: Expr) -> None:
    lanes = isa.lanes
    top, left = at[0] * M - c.pads[0], at[1] * M - c.pads[1]
    inside = tirx.all(top >= 0, left >= 0, top + A <= c.h, left + A <= c.w)

    def transform(read: Callable[[int, int, Expr], Expr]) -> None:
        with loop(c.ci // lanes) as k:
            half = registers(A * A * lanes)
            for j in range(A):
                column = registers(A * lanes)
                for i in range(A):
                    store(column, read(i, j, k * lanes), [i * lanes], lanes)
                values = [load(column, [i * lanes], lanes) for i in range(A)]
                for i in range(A):
                    store(half, _combine(BT[i], values, lanes), [(i * A + j) * lanes], lanes)
            for i in range(A):
                values = [load(half, [(i * A + j) * lanes], lanes) for j in range(A)]
                for j in range(A):
                    store(v, _combine(BT[j], values, lanes), [i * A + j, t * c.ci + k * lanes], lanes)

    def clipped(i: int, j: int, k: Expr) -> Expr:
        row, column = top + i, left + j
        exists = tirx.all(row >= 0, row < c.h, column >= 0, column < c.w)
        return tirx.if_then_else(exists, load(x, [n, row, column, k], lanes), splat(0.0, lanes))

    with when(inside):
        transform(lambda i, j, k: load(x, [n, top + i, left + j, k], lanes))
    with when(tirx.Not(inside)):
        transform(clipped)


def _products(isa: Isa, shape: tile.Shape, block: int, c: Conv, v: Any, w: Any, m: Any, xi: Expr) -> None:
    """``m[xi] = v[xi] @ w[xi]``, tile by tile; rows past the last tile of a partial block are computed and not read."""
    blocks = c.co // isa.lanes

    def one(row: Expr, column: Expr, size: tile.Shape) -> None:
        acc = tile.Accumulators(size, isa)
        with loop(c.ci) as k:
            acc.step(
                range(size.rows),
                lambda i: v[xi, (row + i) * c.ci + k],
                lambda j: load(w, [xi, column + j, k, 0], isa.lanes),
            )
        acc.write(
            [isa.lanes] * size.cols,
            lambda i, j, offset: [xi, (row + i) * c.co + (column + j) * isa.lanes + offset],
            lambda value, _at, _width: value,
            m,
        )

    def columns(column: Expr, cols: int) -> None:
        with loop(block // shape.rows) as r:
            one(r * shape.rows, column, tile.Shape(shape.rows, cols))
        if block % shape.rows:
            one(block - block % shape.rows, column, tile.Shape(block % shape.rows, cols))

    with loop(blocks // shape.cols) as j:
        columns(j * shape.cols, shape.cols)
    if blocks % shape.cols:
        columns(blocks - blocks % shape.cols, blocks % shape.cols)


def _output_transform(
    c: Conv,
    isa: Isa,
    epilogue: Epilogue,
    m: Any,
    b: Any,
    residual: Any,
    y: Any,
    n: Expr,
    at: tuple[Expr, Expr],
    t: Expr,
) -> None:
    lanes = isa.lanes
    with loop(c.co // lanes) as k:
        half = registers(M * A * lanes)
        for j in range(A):
            column = registers(A * lanes)
            for i in range(A):
                store(column, load(m, [i * A + j, t * c.co + k * lanes], lanes), [i * lanes], lanes)
            values = [load(column, [i * lanes], lanes) for i in range(A)]
            for i in range(M):
                store(half, _combine(AT[i], values, lanes), [(i * A + j) * lanes], lanes)
        for i in range(M):
            values = [load(half, [(i * A + j) * lanes], lanes) for j in range(A)]
            for j in range(M):
                row, column = at[0] * M + i, at[1] * M + j
                value = _combine(AT[j], values, lanes) + load(b, [k * lanes], lanes)
                indices = [n, row, column, k * lanes]
                conditions = [row < c.oh] * (i >= (c.oh - 1) % M + 1) + [column < c.ow] * (j >= (c.ow - 1) % M + 1)
                if conditions:
                    with when(tirx.all(*conditions)):
                        store(y, epilogue.finish(residual, value, indices, lanes), indices, lanes)
                else:
                    store(y, epilogue.finish(residual, value, indices, lanes), indices, lanes)
