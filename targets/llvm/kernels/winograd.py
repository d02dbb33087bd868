"""Winograd convolution of 3x3 kernels: F(4x4) takes 36 multiplications for the direct form's 144, F(2x2) 16 for 36.

    Y = A^T [ (G g G^T) * (B^T d B) ] A

(A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015) for each m x m tile of the output, d its
(m+2) x (m+2) input tile, g a kernel; summed over input channels, the product in the middle is (m+2)^2 matrix products
[tiles, CI] x [CI, CO]. Tiles go in blocks whose transformed inputs and products stay in the L2 cache; G g G^T is
computed when the model is compiled. Only for stride 1 without dilation. The relative error of F(4x4) is a few 1e-6,
against a few 1e-7 of the direct form.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Isa,
    function,
    load,
    loop,
    prefetch,
    registers,
    scratch,
    splat,
    store,
    when,
)
from graphopt.targets.llvm.kernels.epilogue import Epilogue

CACHE = 3 << 19  # bytes of L2 for a block's transformed inputs and products
RESIDENT = 1 << 20  # bytes of transformed weights that stay in L2 from block to block


@dataclasses.dataclass(frozen=True)
class Scheme:
    """F(m x m, 3x3): the matrices of the formula above; `a` is the size of an input tile."""

    m: int
    bt: tuple[tuple[int, ...], ...]
    g: tuple[tuple[float, ...], ...]
    at: tuple[tuple[int, ...], ...]

    @property
    def a(self) -> int:
        """``m + 2``."""
        return self.m + 2

    def tiles(self, c: Conv) -> int:
        """Tiles of an image."""
        return -(-c.oh // self.m) * -(-c.ow // self.m)


F2 = Scheme(
    2,
    ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    ((1, 1, 1, 0), (0, 1, -1, -1)),
)
F4 = Scheme(
    4,
    (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)


def applies(c: Conv, isa: Isa) -> bool:
    """3x3, stride 1, one group, whole vectors of channels."""
    ones = c.strides == c.dilations == (1, 1)
    whole = c.ci % isa.lanes == 0 and c.co % isa.lanes == 0
    return c.kernel == (3, 3) and ones and c.group == 1 and whole and max(c.pads) <= 2


def best(c: Conv, isa: Isa) -> Scheme | None:
    """The scheme that is estimated to be fastest for a batch of one; None where the direct form is.

    The model: multiply-adds at the rates that the kernels reach, or the weights at the speed of memory (transformed
    ones are 4 or 1.8 times larger), whichever takes longer, and the transforms.
    """
    if not applies(c, isa):
        return None
    flops = isa.lanes * 12.0  # a ns: two FMA units at 3 GHz
    direct = max(c.oh * c.ow * 9 * c.ci * c.co * 2 / (flops * 0.95), 36 * c.ci * c.co / MEMORY)
    estimates: dict[Scheme | None, float] = {None: direct}
    for scheme in (F2, F4):
        tiles, products = scheme.tiles(c), scheme.a**2
        compute = tiles * products * c.ci * c.co * 2 / (flops * 0.85)
        transforms = tiles * products * (c.ci + c.co) * 0.13
        estimates[scheme] = max(compute, products * 4 * c.ci * c.co / MEMORY) + transforms
    return min(estimates, key=lambda scheme: estimates[scheme])


MEMORY = 9.0  # bytes a ns that one core of a server streams from memory


def pack(weight: np.ndarray[Any, Any], lanes: int, scheme: Scheme = F4) -> np.ndarray[Any, Any]:
    """[CO, CI, 3, 3] -> G g G^T as [(m+2)^2, blocks, CI, lanes], computed in float64."""
    co, ci = weight.shape[:2]
    g = np.array(scheme.g)
    u = np.einsum("ir,ocrs,js->ijco", g, weight.astype(np.float64), g, optimize=True)
    packed = u.reshape(scheme.a**2, ci, co // lanes, lanes).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(packed, dtype=np.float32)


def make(
    c: Conv, isa: Isa, epilogue: Epilogue, parallel: bool, name: str = "winograd", scheme: Scheme = F4
) -> tirx.PrimFunc:
    """``f(x, weights, bias[, residual], y)`` for packed weights and bias."""
    a2, across, tiles = scheme.a**2, -(-c.ow // scheme.m), scheme.tiles(c)
    blocks, block = c.co // isa.lanes, _block(c, scheme)
    shape = tile.choose(block, blocks, isa)
    with function(name) as (f, made):
        x = f.argument("x", [c.n, c.h, c.w, c.ci])
        w = f.argument("w", [a2, blocks, c.ci, isa.lanes])
        b = f.argument("b", [c.co])
        residual = f.argument("r", [c.n, c.oh, c.ow, c.co]) if epilogue.residual else None
        y = f.argument("y", [c.n, c.oh, c.ow, c.co])
        per_image = -(-tiles // block)
        with loop(f.dim(c.n) * per_image, parallel=parallel) as p:
            n, first = p // per_image, p % per_image * block
            count = tirx.Min(tirx.IntImm("int64", block), tiles - first) if tiles % block else block
            v, m = scratch([a2, _stride(block * c.ci)]), scratch([a2, _stride(block * c.co)])
            with loop(count) as t:
                at = (first + t) // across, (first + t) % across
                _input_transform(scheme, c, isa, x, v, n, at, t)
            with loop(a2) as xi:
                _products(scheme, isa, shape, block, c, v, w, m, xi)
            with loop(count) as t:
                at = (first + t) // across, (first + t) % across
                _output_transform(scheme, c, isa, epilogue, m, b, residual, y, n, at, t)
    return made[0]


def _block(c: Conv, scheme: Scheme) -> int:
    """Tiles in a block, all blocks of about one size.

    Small weights stay in the L2 cache beside a block of 14; large ones come from further away for each block, so
    blocks are as large as the L2 cache allows.
    """
    tiles, a2 = scheme.tiles(c), scheme.a**2
    resident = a2 * c.ci * c.co * 4 <= RESIDENT
    most = 14 if resident else max(14, CACHE // (a2 * (c.ci + c.co) * 4))
    return math.ceil(tiles / math.ceil(tiles / most))


def _stride(elements: int) -> int:
    """`elements` rounded up to an odd number of cache lines: a transform's streams then use different cache sets."""
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


def _input_transform(
    scheme: Scheme, c: Conv, isa: Isa, x: Any, v: Any, n: Expr, at: tuple[Expr, Expr], t: Expr
) -> None:
    lanes, a = isa.lanes, scheme.a
    top, left = at[0] * scheme.m - c.pads[0], at[1] * scheme.m - c.pads[1]
    inside = tirx.all(top >= 0, left >= 0, top + a <= c.h, left + a <= c.w)

    def transform(read: Callable[[int, int, Expr], Expr]) -> None:
        with loop(c.ci // lanes) as k:
            half = registers(a * a * lanes)
            for j in range(a):
                column = registers(a * lanes)
                for i in range(a):
                    store(column, read(i, j, k * lanes), [i * lanes], lanes)
                values = [load(column, [i * lanes], lanes) for i in range(a)]
                for i in range(a):
                    store(half, _combine(scheme.bt[i], values, lanes), [(i * a + j) * lanes], lanes)
            for i in range(a):
                values = [load(half, [(i * a + j) * lanes], lanes) for j in range(a)]
                for j in range(a):
                    store(v, _combine(scheme.bt[j], values, lanes), [i * a + j, t * c.ci + k * lanes], lanes)

    def clipped(i: int, j: int, k: Expr) -> Expr:
        row, column = top + i, left + j
        exists = tirx.all(row >= 0, row < c.h, column >= 0, column < c.w)
        return tirx.if_then_else(exists, load(x, [n, row, column, k], lanes), splat(0.0, lanes))

    with when(inside):
        transform(lambda i, j, k: load(x, [n, top + i, left + j, k], lanes))
    with when(tirx.Not(inside)):
        transform(clipped)


def _products(
    scheme: Scheme, isa: Isa, shape: tile.Shape, block: int, c: Conv, v: Any, w: Any, m: Any, xi: Expr
) -> None:
    """``m[xi] = v[xi] @ w[xi]``, tile by tile; rows past the last tile of a partial block are computed and not read."""
    blocks = c.co // isa.lanes

    passes = block // shape.rows
    ahead = tile.Ahead.of(shape.cols, passes, 4 * scheme.a**2 * c.ci * c.co) if passes else None

    def one(row: Expr, column: Expr, size: tile.Shape, columns_ahead: list[Expr]) -> None:
        acc = tile.Accumulators(size, isa)
        with loop(c.ci) as k:
            for j in columns_ahead:
                prefetch(w, [xi, column + size.cols + j, k, 0])
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
            following = ahead.columns(r) if ahead is not None and cols == shape.cols else []
            one(r * shape.rows, column, tile.Shape(shape.rows, cols), following)
        if block % shape.rows:
            one(block - block % shape.rows, column, tile.Shape(block % shape.rows, cols), [])

    with loop(blocks // shape.cols) as j:
        columns(j * shape.cols, shape.cols)
    if blocks % shape.cols:
        columns(blocks - blocks % shape.cols, blocks % shape.cols)


def _output_transform(
    scheme: Scheme,
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
    lanes, a = isa.lanes, scheme.a
    with loop(c.co // lanes) as k:
        half = registers(scheme.m * a * lanes)
        for j in range(a):
            column = registers(a * lanes)
            for i in range(a):
                store(column, load(m, [i * a + j, t * c.co + k * lanes], lanes), [i * lanes], lanes)
            values = [load(column, [i * lanes], lanes) for i in range(a)]
            for i in range(scheme.m):
                store(half, _combine(scheme.at[i], values, lanes), [(i * a + j) * lanes], lanes)
        for i in range(scheme.m):
            values = [load(half, [(i * a + j) * lanes], lanes) for j in range(a)]
            for j in range(scheme.m):
                row, column = at[0] * scheme.m + i, at[1] * scheme.m + j
                value = _combine(scheme.at[j], values, lanes) + load(b, [k * lanes], lanes)
                indices = [n, row, column, k * lanes]
                conditions = [row < c.oh] * (i > (c.oh - 1) % scheme.m) + [column < c.ow] * (j > (c.ow - 1) % scheme.m)
                if conditions:
                    with when(tirx.all(*conditions)):
                        store(y, epilogue.finish(residual, value, indices, lanes), indices, lanes)
                else:
                    store(y, epilogue.finish(residual, value, indices, lanes), indices, lanes)
