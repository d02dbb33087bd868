"""Winograd's F(2x2, 3x3) on integers: 16 multiplications for the 36 of four outputs, and the very same sums.

    4 Y = A^T [ (2G g 2G^T) * (B^T d B) ] A

(A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015). ``2G`` and ``B`` are integers: of 8-bit
weights and inputs, 12 and 11 bits are left, and pairs of channels are multiplied and added by `vpmaddwd`. Sums may wrap
around on the way: the result is right where ``4 Y`` fits int32, which `applies` sees to. Multipliers are a quarter of
the layer's, which is exact, so that results are those of `contract` bit for bit.

Each image is copied between bytes of the value z_x first; tiles go in blocks whose transformed inputs and products stay
in the L2 cache. Faster where a byte product isn't much cheaper than one of int16: on x86 without VNNI.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels import contract, tile
from graphopt.targets.llvm.kernels.arithmetic import Dot
from graphopt.targets.llvm.kernels.contract import SLACK, Contraction
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Isa,
    function,
    load,
    loop,
    named,
    pieces,
    prefetch,
    runs,
    scratch,
    splat,
    store,
    when,
)
from graphopt.targets.llvm.kernels.requantise import Finish
from graphopt.targets.llvm.kernels.winograd import SHARED_FROM, odd_lines

Array = np.ndarray[Any, Any]

DOT = Dot("maddwd", 2, extra=1)
"""Pairs of int16; unlike in `contract`, weights are int16 in memory."""
CACHE, LARGE = 1 << 18, 3 << 18
"""Bytes of L2 for a block's transformed inputs and products; with weights that come from beyond it for each block."""
RESIDENT = 1 << 20
"""Bytes of transformed weights that stay in L2."""
POINTS = 16
QUARTER = np.float32(0.25)
"""What a step of the sums is worth in steps of the layer's."""
G2 = ((2, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 2))


def applies(p: Contraction, dot: Dot, weight: Array, bias: Array, isa: Isa) -> bool:
    """Whether `make` computes a layer, exactly, with instructions that the `dot` of `contract` uses too."""
    c = p.conv
    if dot.name not in ("maddwd", "maddubs") or p.rows is not None:
        return False
    if c.kernel != (3, 3) or not c.strides == c.dilations == (1, 1) or c.group != 1 or max(c.pads) > 2:
        return False
    if c.ci % 2 or c.ci < 2 * isa.lanes or c.co < isa.lanes:
        return False
    if len(pieces(c.ci % (2 * isa.lanes), 2 * isa.lanes)) > 1 or len(pieces(c.co % isa.lanes, isa.lanes)) > 1:
        return False
    most = 255 * np.abs(weight.astype(np.int64)).sum(axis=(1, 2, 3)) + np.abs(bias.astype(np.int64))
    return bool(most.max(initial=0) < 2**29)


def tiles(c: Conv) -> int:
    """Tiles of 2 x 2 outputs."""
    return -(-c.oh // 2) * -(-c.ow // 2)


def tiles_at_once(c: Conv) -> int:
    """Tiles in a block: blocks of about one size that fit the cache."""
    each = POINTS * (2 * c.ci + 4 * c.co)
    room = CACHE if 2 * POINTS * c.ci * c.co <= RESIDENT else LARGE
    return math.ceil(tiles(c) / math.ceil(tiles(c) * each / room))


def pack(weight: Array, lanes: int) -> Array:
    """int8 [CO, CI, 3, 3] -> ``2G g 2G^T`` as int16 [16, blocks, CI / 2, 2 * lanes], channels past CO zero."""
    co, ci = weight.shape[:2]
    g = np.array(G2)
    u = np.einsum("ir,ocrs,js->ijco", g, weight.astype(np.int64), g, optimize=True).reshape(POINTS, ci, co)
    blocks = -(-co // lanes)
    padded = np.zeros((POINTS, ci, blocks * lanes), np.int16)
    padded[:, :, :co] = u
    split = padded.reshape(POINTS, ci // 2, 2, blocks, lanes).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(split).reshape(POINTS, blocks, ci // 2, 2 * lanes)


def pack_bias(bias: Array, weight: Array, p: Contraction, lanes: int) -> Array:
    """int32 [blocks * lanes]: four times ``bias - z_x * sum(w)``."""
    return 4 * contract.pack_bias(bias, weight, p, DOT, lanes)


def make(p: Contraction, isa: Isa, finish: Finish, parallel: bool, name: str) -> tirx.PrimFunc:
    """``f(x, weights, bias, m[, residual], y)`` for packed weights and bias, and `QUARTER` times the multipliers."""
    c, lanes = p.conv, isa.lanes
    blocks, block, across = -(-c.co // lanes), tiles_at_once(c), -(-c.ow // 2)
    top, left, bottom, right = c.pads
    even = dataclasses.replace(c, pads=(top, left, bottom + c.oh % 2, right + c.ow % 2))
    inputs, outputs = p.shapes
    with function(name) as (f, made):
        x = f.argument("x", inputs, "uint8")
        w = f.argument("w", [POINTS, blocks, c.ci // 2, 2 * lanes], "int16")
        b = f.argument("b", [blocks * lanes], "int32")
        m = f.argument("m", [c.co])
        r = f.argument("r", outputs, finish.addend) if finish.addend else None
        y = f.argument("y", outputs, finish.dtype)
        lines = f.view(x, [f.dim(c.n) * c.h, c.w * c.ci])
        image = scratch(
            [c.h + even.pads[0] + even.pads[2], (c.w + even.pads[1] + even.pads[3]) * c.ci + SLACK], "uint8"
        )
        per_image = -(-tiles(c) // block)
        within = parallel and per_image < SHARED_FROM
        with loop(f.dim(c.n)) as n:
            contract.stage(dataclasses.replace(p, conv=even), DOT, isa, lines, n, image, parallel)
            with loop(per_image, parallel=parallel and not within) as index:
                first = index * block
                count = tirx.Min(tirx.IntImm("int64", block), tiles(c) - first) if tiles(c) % block else block
                v = scratch([POINTS, odd_lines(block * c.ci // 2) * 2], "int16")
                products = scratch([POINTS, odd_lines(block * blocks * lanes)], "int32")
                steps = _Block(c, isa, finish, image, w, b, m, r, y, v, products, n)
                with loop(count, parallel=within) as t:
                    steps.transform_input((first + t) // across, (first + t) % across, t)
                with loop(POINTS, parallel=within) as xi:
                    steps.multiply(xi, block)
                with loop(count, parallel=within) as t:
                    steps.transform_output((first + t) // across, (first + t) % across, t)
    return made[0]


@dataclasses.dataclass(frozen=True)
class _Block:
    """The three steps over one block of tiles of image `n`; `v` and `products` hold what lies between them."""

    c: Conv
    isa: Isa
    finish: Finish
    image: Any
    w: Any
    b: Any
    m: Any
    r: Any
    y: Any
    v: Any
    products: Any
    n: Expr

    @property
    def blocks(self) -> int:
        """Vectors of output channels."""
        return -(-self.c.co // self.isa.lanes)

    def transform_input(self, row: Expr, column: Expr, t: Expr) -> None:
        """``v[:, t] = B^T d B`` for the tile in that row and column of tiles."""

        def run(k: Expr, lanes: int) -> None:
            def read(i: int, j: int) -> Expr:
                value = load(self.image, [row * 2 + i, (column * 2 + j) * self.c.ci + k], lanes)
                return named(tirx.Cast(_vector("int16", lanes), value))

            down = [_apply_bt([read(i, j) for i in range(4)]) for j in range(4)]
            for i in range(4):
                for j, value in enumerate(_apply_bt([down[j][i] for j in range(4)])):
                    store(self.v, value, [i * 4 + j, t * self.c.ci + k], lanes)

        runs(self.c.ci, 2 * self.isa.lanes, run)

    def multiply(self, xi: Expr, block: int) -> None:
        """``products[xi] = v[xi] @ w[xi]``; rows past the last tile of a partial block are computed and not read."""
        shape = tile.choose(block, self.blocks, contract.room(self.isa, DOT))
        passes = block // shape.rows
        ahead = tile.Ahead.of(shape.cols, passes, 2 * POINTS * self.c.ci * self.c.co) if passes else None

        def columns(column: Expr, cols: int) -> None:
            with loop(passes) as i:
                following = ahead.columns(i) if ahead is not None and cols == shape.cols else []
                self._product(xi, i * shape.rows, column, tile.Shape(shape.rows, cols), following)
            if block % shape.rows:
                last = block % shape.rows
                self._product(xi, block - last, column, tile.Shape(last, cols), [])

        with loop(self.blocks // shape.cols) as j:
            columns(j * shape.cols, shape.cols)
        if self.blocks % shape.cols:
            columns(self.blocks - self.blocks % shape.cols, self.blocks % shape.cols)

    def _product(self, xi: Expr, row: Expr, column: Expr, shape: tile.Shape, ahead: list[Expr]) -> None:
        lanes, width = self.isa.lanes, self.blocks * self.isa.lanes
        acc = tile.Accumulators(shape, self.isa, lambda _: splat(0, lanes, "int32"), DOT)
        with loop(self.c.ci // 2) as s:
            for j in ahead:
                prefetch(self.w, [xi, column + shape.cols + j, s, 0])
            acc.step(
                range(shape.rows),
                lambda i: DOT.input(self.v, [xi, (row + i) * self.c.ci + s * 2]),
                lambda j: load(self.w, [xi, column + j, s, 0], 2 * lanes),
            )
        acc.write(
            [lanes] * shape.cols,
            lambda i, j, offset: [xi, (row + i) * width + (column + j) * lanes + offset],
            lambda value, _place, _width: value,
            self.products,
        )

    def transform_output(self, row: Expr, column: Expr, t: Expr) -> None:
        """``A^T products[:, t] A``, finished and stored where the output has such rows and columns."""
        c, lanes = self.c, self.isa.lanes

        def run(k: Expr, count: int) -> None:
            pair = [self._sums(t, k + at, min(count, lanes)) for at in range(0, count, lanes)]
            for i in range(2):
                for j in range(2):
                    y, x = row * 2 + i, column * 2 + j
                    exists = [y < c.oh] * (i == 1 and c.oh % 2) + [x < c.ow] * (j == 1 and c.ow % 2)
                    with when(tirx.all(*exists)) if exists else contextlib.nullcontext():
                        place, values = [self.n, y, x, k], [sums[2 * i + j] for sums in pair]
                        if len(values) == 2:
                            value = self.finish.together(values, self.m, self.r, place, lanes)
                        else:
                            value = self.finish(values[0], self.m, self.r, place, count)
                        store(self.y, value, place, count)

        runs(c.co, 2 * lanes if self.finish.packs(self.isa) else lanes, run)

    def _sums(self, t: Expr, k: Expr, lanes: int) -> list[Expr]:
        """``A^T products[:, t] A`` with the bias, of `lanes` channels from `k` on."""
        width = self.blocks * self.isa.lanes

        def read(i: int, j: int) -> Expr:
            return named(load(self.products, [i * 4 + j, t * width + k], lanes))

        down = [_apply_at([read(i, j) for i in range(4)]) for j in range(4)]
        bias = named(load(self.b, [k], lanes))
        return [named(value + bias) for i in range(2) for value in _apply_at([down[j][i] for j in range(4)])]


def _apply_bt(d: list[Expr]) -> list[Expr]:
    return [named(value) for value in (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3])]


def _apply_at(m: list[Expr]) -> list[Expr]:
    return [named(value) for value in (m[0] + m[1] + m[2], m[1] - m[2] - m[3])]


def _vector(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype
