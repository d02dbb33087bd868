"""Direct convolution, channels-last, any kernel, stride, dilation and padding; no copy of the input is padded.

Loops: batch and output rows, blocks of output channels, tiles of output columns; inside a tile kernel rows, kernel
columns, input channels, one tile step each (see `tile`). Kernel rows outside the image are left out by the loop's
bounds, and kernel columns outside it when the tile at the border is written out: only tiles inside have a loop over
columns.

Weights are packed to [blocks, KH, KW, CI, lanes]: the inner loop reads them in order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, prefetch
from graphopt.targets.llvm.kernels.epilogue import Epilogue


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution: input [N, H, W, CI], output [N, OH, OW, CO]; `n` a number or the name of a symbolic dimension.

    `pads`: top, left, bottom, right. With groups, `ci` and `co` count all channels; group = channels is `depthwise`.
    """

    n: int | str
    h: int
    w: int
    ci: int
    co: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    group: int = 1

    @property
    def oh(self) -> int:
        """Output rows."""
        return _out(self.h, self.kernel[0], self.strides[0], self.dilations[0], self.pads[0] + self.pads[2])

    @property
    def ow(self) -> int:
        """Output columns."""
        return _out(self.w, self.kernel[1], self.strides[1], self.dilations[1], self.pads[1] + self.pads[3])


def _out(size: int, kernel: int, stride: int, dilation: int, pad: int) -> int:
    return (size + pad - dilation * (kernel - 1) - 1) // stride + 1


def pack(weight: np.ndarray[Any, Any], lanes: int, group: int = 1) -> np.ndarray[Any, Any]:
    """[CO, CI/group, KH, KW] -> [group, blocks, KH, KW, CI/group, lanes], channels past CO/group zero."""
    co, ci, kh, kw = weight.shape
    blocks = -(-co // group // lanes)
    padded = np.zeros((group, blocks * lanes, ci, kh, kw), np.float32)
    padded[:, : co // group] = weight.reshape(group, co // group, ci, kh, kw)
    split = padded.reshape(group, blocks, lanes, ci, kh, kw)
    return np.ascontiguousarray(split.transpose(0, 1, 4, 5, 3, 2))


def pack_bias(bias: np.ndarray[Any, Any] | None, co: int, lanes: int, group: int = 1) -> np.ndarray[Any, Any]:
    """[CO] -> [group * blocks * lanes], zeros past CO/group; zeros without a bias."""
    each = co // group
    padded = np.zeros((group, -(-each // lanes) * lanes), np.float32)
    padded[:, :each] = 0.0 if bias is None else bias.reshape(group, each)
    return padded.reshape(-1)


def direct(
    c: Conv, isa: Isa, epilogue: Epilogue, parallel: bool, name: str = "conv", shape: tile.Shape | None = None
) -> tirx.PrimFunc:
    """``f(x, weights, bias[, residual], y)`` for packed weights and bias; `shape` in place of the tile chosen here."""
    each = c.co // c.group
    blocks = -(-each // isa.lanes)
    shape = shape or tile.choose(c.ow, blocks, isa)
    whole = each // isa.lanes // shape.cols  # panels of blocks of which every channel exists
    with function(name) as (f, made):
        x = f.argument("x", [c.n, c.h, c.w, c.ci])
        w = f.argument("w", [c.group, blocks, *c.kernel, c.ci // c.group, isa.lanes])
        b = f.argument("b", [c.group * blocks * isa.lanes])
        residual = f.argument("r", [c.n, c.oh, c.ow, c.co]) if epilogue.residual else None
        y = f.argument("y", [c.n, c.oh, c.ow, c.co])
        row = _Row(c, isa, epilogue, x, w, b, residual, y)
        rows = f.dim(c.n) * c.oh
        nbytes = 4 * c.kernel[0] * c.kernel[1] * c.ci // c.group * c.co
        ahead = tile.Ahead.of(shape.cols, c.oh, nbytes)
        if whole:
            with loop(
                rows * whole * c.group, parallel=parallel
            ) as p:  # a panel's weights serve all rows, then the next
                r, panel = p % rows, p // rows
                columns = None if ahead is None else ahead.columns(r)
                row.emit(r // c.oh, r % c.oh, panel // whole, panel % whole * shape.cols, shape, columns)
        for first in range(whole * shape.cols, blocks, shape.cols):
            last = tile.Shape(shape.rows, min(shape.cols, blocks - first))
            with loop(rows * c.group, parallel=parallel) as p:
                r = p % rows
                row.emit(r // c.oh, r % c.oh, p // rows, first, last)
    return made[0]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Which row of which image, group and panel; and the columns of the next panel to fetch meanwhile."""

    n: Expr
    oh: Expr
    g: Expr
    block: Expr
    ahead: list[Expr]


@dataclasses.dataclass(frozen=True)
class _Row:
    """One output row for one panel of channel blocks of one group."""

    c: Conv
    isa: Isa
    epilogue: Epilogue
    x: Any
    w: Any
    b: Any
    residual: Any
    y: Any

    def emit(self, n: Expr, oh: Expr, g: Expr, block: Expr, shape: tile.Shape, ahead: list[Expr] | None = None) -> None:
        """Tiles before the inside, a loop over those inside, tiles after it."""
        c, step = self.c, shape.rows
        place = _Place(n, oh, g, block, ahead or [])
        starts = range(0, c.ow, step)
        inside = [s for s in starts if self._inside(s, step)]
        for s in starts:
            if s in inside:
                if s == inside[0] and len(inside) > 1:
                    with loop(len(inside)) as t:
                        self._tile(place, inside[0] + t * step, shape, border=False)
                elif s == inside[0]:
                    self._tile(place, s, shape, border=False)
            else:
                self._tile(place, s, tile.Shape(min(step, c.ow - s), shape.cols), border=True)

    def _inside(self, start: int, rows: int) -> bool:
        """A whole tile that needs no column outside the image."""
        return start + rows <= self.c.ow and all(
            self._valid(start + i, kw) for i in (0, rows - 1) for kw in range(self.c.kernel[1])
        )

    def _valid(self, column: int, kw: int) -> bool:
        return 0 <= self._column(column, kw) < self.c.w

    def _column(self, column: Expr, kw: Expr) -> Expr:
        return column * self.c.strides[1] + kw * self.c.dilations[1] - self.c.pads[1]

    def _tile(self, place: _Place, start: Expr, shape: tile.Shape, border: bool) -> None:
        c, lanes = self.c, self.isa.lanes
        n, oh, g, block = place.n, place.oh, place.g, place.block
        ci, co = c.ci // c.group, c.co // c.group
        blocks = -(-co // lanes)
        acc = tile.Accumulators(shape, self.isa, lambda j: load(self.b, [(g * blocks + block + j) * lanes], lanes))
        top = oh * c.strides[0] - c.pads[0]
        low, high = row_range(top, c)
        with loop(high, start=low) as kh:
            ih = top + kh * c.dilations[0]

            def over_channels(kw: Expr, valid: range | list[int]) -> None:
                with loop(ci) as k:
                    for column in place.ahead:
                        prefetch(self.w, [g, block + shape.cols + column, kh, kw, k, 0])
                    acc.step(
                        valid,
                        lambda i: self.x[n, ih, self._column(start + i, kw), g * ci + k],
                        lambda j: load(self.w, [g, block + j, kh, kw, k, 0], lanes),
                    )

            if border:
                for kw in range(c.kernel[1]):
                    valid = [i for i in range(shape.rows) if self._valid(start + i, kw)]
                    if valid:
                        over_channels(kw, valid)
            else:
                with loop(c.kernel[1]) as kw:
                    over_channels(kw, range(shape.rows))
        partial = isinstance(block, int) and block + shape.cols == blocks
        acc.write(
            [*[lanes] * (shape.cols - 1), co - (blocks - 1) * lanes if partial else lanes],
            lambda i, j, offset: [n, oh, start + i, g * co + (block + j) * lanes + offset],
            lambda value, at, width: self.epilogue.finish(self.residual, value, at, width),
            self.y,
            apart=self.epilogue.long,
        )


def row_range(top: Expr, c: Conv) -> tuple[Expr, Expr]:
    """Kernel rows whose image row ``top + kh * dilation`` exists."""
    if c.pads[0] == 0 and c.pads[2] == 0:
        return 0, c.kernel[0]
    d = c.dilations[0]
    low = tirx.Max(tirx.IntImm("int64", 0), (d - 1 - top) // d)
    high = tirx.Min(tirx.IntImm("int64", c.kernel[0]), (c.h - top + d - 1) // d)
    return low, high
