"""Direct convolution, channels-last, any kernel, stride, dilation and padding; no copy of the input is padded.

Loops: batch and output rows, blocks of output channels, tiles of output columns; inside a tile kernel rows, kernel
columns, input channels, one tile step each (see `tile`). Without dilation the last two are one loop: channels-last, the
columns that a position sees lie in one piece. Kernel rows outside the image are left out by the loop's bounds, and
kernel columns outside it when the tile at the border is written out, in runs of columns that the same positions see.
A tile of few accumulators (a narrow image) has as many again, for every other step.

Weights are packed to [blocks, KH, KW, CI, lanes]: the inner loop reads them in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.packed import Steps, pad, reshape, run, transpose
from graphopt.targets.llvm.kernels import beside, tile
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, prefetch
from graphopt.targets.llvm.kernels.epilogue import Epilogue
from graphopt.targets.llvm.kernels.window import Conv as Conv


def pack(weight: np.ndarray[Any, Any], lanes: int, group: int = 1) -> np.ndarray[Any, Any]:
    """[CO, CI/group, KH, KW] -> [group, blocks, KH, KW, CI/group, lanes], channels past CO/group zero."""
    return run(weight, packing(weight.shape, lanes, group))


def packing(shape: Sequence[int], lanes: int, group: int = 1) -> Steps:
    """The steps of `pack`."""
    co, *inner = shape
    blocks = -(-co // group // lanes)
    return (
        reshape(group, co // group, *inner), pad(1, blocks * lanes), reshape(group, blocks, lanes, *inner),
        transpose(0, 1, 4, 5, 3, 2),
    )  # fmt: skip


def pack_bias(bias: np.ndarray[Any, Any] | None, co: int, lanes: int, group: int = 1) -> np.ndarray[Any, Any]:
    """[CO] -> [group * blocks * lanes], zeros past CO/group; zeros without a bias."""
    each = co // group
    padded = np.zeros((group, -(-each // lanes) * lanes), np.float32)
    padded[:, :each] = 0.0 if bias is None else bias.reshape(group, each)
    return padded.reshape(-1)


def direct(
    c: Conv, isa: Isa, epilogue: Epilogue, parallel: bool, name: str = "conv", shape: tile.Shape | None = None
) -> tirx.PrimFunc:
    """``f(x, weights, bias[, residual], y)`` for packed weights and bias; `shape` in place of the tile chosen here.

    Weights and bias are those of the convolution made ``wide`` by ``columns(c, lanes)`` (see `beside`).
    """
    p = beside.columns(c, isa.lanes)
    k, full = beside.wide(c, p), c.ow // p
    each, ci = k.co // c.group, c.ci // c.group
    blocks = -(-each // isa.lanes)
    shape = shape or tile.choose(full, blocks, isa)
    whole = each // isa.lanes // shape.cols  # panels of blocks of which every channel exists
    with function(name) as (f, made):
        x = f.argument("x", [c.n, c.h, c.w, c.ci])
        w = f.argument("w", [c.group, blocks, *k.kernel, ci, isa.lanes])
        b = f.argument("b", [c.group * blocks * isa.lanes])
        residual = f.argument("r", [c.n, c.oh, c.ow, c.co]) if epilogue.residual else None
        y = f.argument("y", [c.n, c.oh, c.ow, c.co])
        x, y = f.matrix(x, [c.n, c.h, c.w * c.ci]), f.matrix(y, [c.n, c.oh, c.ow * c.co])
        w = f.view(w, [c.group * blocks, c.kernel[0], k.kernel[1] * ci, isa.lanes])
        residual = None if residual is None else f.matrix(residual, [c.n, c.oh, c.ow * c.co])
        row = _Row(k, full, isa, epilogue, x, w, b, residual, y)
        rows = f.dim(c.n) * c.oh
        nbytes = 4 * k.kernel[0] * k.kernel[1] * ci * k.co
        ahead = tile.Ahead.of(shape.cols, c.oh, nbytes)
        if whole:
            with loop(
                rows * whole * c.group, parallel=parallel
            ) as t:  # a panel's weights serve all rows, then the next
                r, panel = t % rows, t // rows
                columns = None if ahead is None else ahead.columns(r)
                row.emit(r, panel // whole, panel % whole * shape.cols, shape, columns)
        for first in range(whole * shape.cols, blocks, shape.cols):
            last = tile.Shape(shape.rows, min(shape.cols, blocks - first))
            with loop(rows * c.group, parallel=parallel) as t:
                row.emit(t % rows, t // rows, first, last)
        if c.ow % p:
            with loop(rows, parallel=parallel) as r:
                row.rest(r, c.ow % p * c.co)
    return made[0]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Which row of all images, group and panel; and the columns of the next panel to fetch meanwhile."""

    row: Expr
    g: Expr
    block: Expr
    ahead: list[Expr]


@dataclasses.dataclass(frozen=True)
class _Row:
    """One output row for one panel of channel blocks of one group. Images are matrices: rows, columns * channels."""

    c: Conv
    columns: int
    isa: Isa
    epilogue: Epilogue
    x: Any
    w: Any
    b: Any
    residual: Any
    y: Any

    @property
    def blocks(self) -> int:
        """Vectors of output channels of one group."""
        return -(-self.c.co // self.c.group // self.isa.lanes)

    def emit(self, row: Expr, g: Expr, block: Expr, shape: tile.Shape, ahead: list[Expr] | None = None) -> None:
        """Tiles before the inside, a loop over those inside, tiles after it."""
        step, lanes = shape.rows, self.isa.lanes
        place = _Place(row, g, block, ahead or [])
        partial = isinstance(block, int) and block + shape.cols == self.blocks
        last = self.c.co // self.c.group - (self.blocks - 1) * lanes
        counts = [*[lanes] * (shape.cols - 1), last if partial else lanes]
        starts = range(0, self.columns, step)
        inside = [s for s in starts if self._inside(s, step)]
        for s in starts:
            if s not in inside:
                self._tile(place, s, tile.Shape(min(step, self.columns - s), shape.cols), counts)
            elif s == inside[0]:
                everywhere = [(0, self.c.kernel[1], list(range(step)))]
                with loop(len(inside)) as t:
                    self._tile(place, inside[0] + t * step, shape, counts, everywhere)

    def rest(self, row: Expr, count: int) -> None:
        """The column past the last whole one, of which `count` channels exist."""
        lanes, blocks = self.isa.lanes, -(-count // self.isa.lanes)
        counts = [min(lanes, count - j * lanes) for j in range(blocks)]
        self._tile(_Place(row, 0, 0, []), self.columns, tile.Shape(1, blocks), counts)

    def _inside(self, start: int, rows: int) -> bool:
        """A whole tile that needs no column outside the image."""
        return start + rows <= self.columns and all(
            self._valid(start + i, kw) for i in (0, rows - 1) for kw in range(self.c.kernel[1])
        )

    def _valid(self, column: int, kw: int) -> bool:
        return 0 <= self._column(column, kw) < self.c.w

    def _column(self, column: Expr, kw: Expr) -> Expr:
        return column * self.c.strides[1] + kw * self.c.dilations[1] - self.c.pads[1]

    def _border(self, start: int, rows: int) -> list[tuple[int, int, list[int]]]:
        """(first, count, rows): runs of kernel columns that are inside the image for the same rows of a tile."""
        runs: list[tuple[int, int, list[int]]] = []
        for kw in range(self.c.kernel[1]):
            valid = [i for i in range(rows) if self._valid(start + i, kw)]
            if runs and runs[-1][2] == valid:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1, valid)
            else:
                runs.append((kw, 1, valid))
        return [run for run in runs if run[2]]

    def _tile(
        self,
        place: _Place,
        start: Expr,
        shape: tile.Shape,
        counts: list[int],
        runs: list[tuple[int, int, list[int]]] | None = None,
    ) -> None:
        c, lanes = self.c, self.isa.lanes
        row, g, block = place.row, place.g, place.block
        ci, co = c.ci // c.group, c.co // c.group
        at = g * self.blocks + block
        acc = tile.Accumulators(shape, self.isa, lambda j: load(self.b, [(at + j) * lanes], lanes))
        one_piece = c.group == c.dilations[1] == 1  # what the kernel columns of a run see
        halved = one_piece and tile.waits(shape, self.isa) and not place.ahead
        odd = tile.Accumulators(shape, self.isa) if halved else None
        top = row % c.oh * c.strides[0] - c.pads[0]
        low, high = row_range(top, c)
        with loop(high, start=low) as kh:
            ih = row // c.oh * c.h + top + kh * c.dilations[0]

            def step(kw: Expr, k: Expr, valid: list[int], into: tile.Accumulators = acc) -> None:
                for column in place.ahead:
                    prefetch(self.w, [at + shape.cols + column, kh, kw * ci + k, 0])
                into.step(
                    valid,
                    lambda i: self.x[ih, self._column(start + i, kw) * c.ci + g * ci + k],
                    lambda j: load(self.w, [at + j, kh, kw * ci + k, 0], lanes),
                )

            for first, count, valid in self._border(start, shape.rows) if runs is None else runs:
                if odd is not None:
                    with loop(count * ci // 2) as k:
                        step(first, 2 * k, valid)
                        step(first, 2 * k + 1, valid, odd)
                    if count * ci % 2:
                        step(first, count * ci - 1, valid)
                elif one_piece:
                    with loop(count * ci) as k:
                        step(first, k, valid)
                else:
                    with loop(count) as kw, loop(ci) as k:
                        step(first + kw, k, valid)
        if odd is not None:
            acc.add(odd)
        acc.write(
            counts,
            lambda i, j, offset: [row, (start + i) * c.co + g * co + (block + j) * lanes + offset],
            lambda value, to, width: self.epilogue.finish(self.residual, value, to, width),
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
