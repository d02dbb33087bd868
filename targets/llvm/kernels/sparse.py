"""Convolutions and matrix products whose constant weights are mostly zeros: only the others are multiplied.

After E. Elsen et al., "Fast Sparse ConvNets", 2019. The input is turned to channels first, so that one weight meets a
vector of neighbouring positions, and the sums of `vectors` such vectors stay in registers while the weights of an
output channel go by, each with the place of its input::

    acc[v] += splat(w_j) * x[place_j + position + v * width]

The input lies between zeros as one line of positions for each channel, and for each phase of the stride: a tap of the
kernel is then a distance along that line. Positions between the end of a row of the output and the beginning of the
next (as many as the kernel is wide, less one) are computed and not stored.

Where the weights that are not zero come in blocks of `outputs` output channels with the same input, as block patterns
have it, an input is loaded once for all of them. With few positions `unroll` weights at a time go to accumulators of
their own, so that additions don't wait for each other. Weights are in order of blocks of `inner` input channels, whose
part of the line stays in the L1 cache, then of output channels; sums wait in scratch memory, and are turned back to
channels-last with bias and epilogue.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from graphopt.targets.llvm.kernels.arithmetic import FLOAT
from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Isa,
    function,
    i64,
    load,
    loop,
    named,
    runs,
    scratch,
    splat,
    store,
    vectors,
    when,
)
from graphopt.targets.llvm.kernels.epilogue import Epilogue
from graphopt.targets.llvm.kernels.sparse_pattern import Lines, Pattern
from graphopt.targets.llvm.kernels.transpose import squares


def make(
    p: Pattern,
    isa: Isa,
    epilogue: Epilogue,
    parallel: bool,
    name: str = "sparse",
    rows: Sequence[int | str] | None = None,
) -> tirx.PrimFunc:
    """``f(x, values, places, starts, targets, bias[, residual], y)``; x [n, h, w, ci], y [n, oh, ow, co].

    Weights are those of `Pattern.pack`. `rows`: the dimensions but the last of a matrix product's x and y.
    """
    c = p.conv
    before, after = (rows, rows) if rows is not None else ((c.n, c.h, c.w), (c.n, c.oh, c.ow))
    with function(name) as (f, made):
        x = f.argument("x", [*before, c.ci])
        values = f.argument("values", [p.stored * p.outputs])
        places = f.argument("places", [p.stored], "int32")
        starts = f.argument("starts", [p.starts], "int32")
        targets = f.argument("targets", [p.starts - 1], "int32")
        bias = f.argument("b", [p.rows])
        residual = f.argument("r", [*after, c.co]) if epilogue.residual else None
        y = f.argument("y", [*after, c.co])
        x, y = f.view(x, [f.dim(c.n) * c.h * c.w * c.ci]), f.matrix(y, [*after, c.co])
        residual = None if residual is None else f.matrix(residual, [*after, c.co])
        lines = scratch([p.lines.elements + p.tile])
        with loop(f.dim(c.n)) as n:
            _Input(p.lines, isa, x, lines, n).emit(parallel)
            product = _Product(p, isa, epilogue, lines, values, places, starts, targets, bias, residual, y, n)
            with loop(p.tiles * p.chunks, parallel=parallel) as unit:
                tile, number, rest = unit // p.chunks, unit % p.chunks, c.co % p.chunk
                if p.chunks > 1 or not rest:
                    with when(number < p.chunks - 1) if rest else contextlib.nullcontext():
                        product.emit(tile, number * p.chunk, p.chunk)
                if rest:
                    with when(number == p.chunks - 1) if p.chunks > 1 else contextlib.nullcontext():
                        product.emit(tile, i64((p.chunks - 1) * p.chunk), rest)
    return made[0]


@dataclasses.dataclass(frozen=True)
class _Input:
    """Sample `n` of x as `lines`."""

    lines: Lines
    isa: Isa
    x: Any
    to: Any
    n: Expr

    def emit(self, parallel: bool) -> None:
        """Zeros, then each phase's rows in between, turned."""
        c, lanes = self.lines.conv, self.isa.lanes
        whole, rest = c.ci // lanes, c.ci % lanes
        for count, first in ((whole, 0), (1 if rest else 0, whole)):
            if not count:
                continue
            channels = lanes if first == 0 and whole else rest
            with loop(count, parallel=parallel and count > 1) as block:
                start = named((block + first) * lanes)
                if self.lines.bordered:
                    self._clear(start, channels)
                for number, phase in enumerate(self.lines.phases):
                    self._phase(number, phase, start, channels)

    def _clear(self, channel: Expr, channels: int) -> None:
        size = channels * len(self.lines.phases) * self.lines.step
        at = channel * len(self.lines.phases) * self.lines.step
        runs(size, self.isa.lanes, lambda k, n: store(self.to, splat(0.0, n), [at + k], n))

    def _phase(self, number: int, phase: tuple[int, int], channel: Expr, channels: int) -> None:
        c, lines = self.lines.conv, self.lines
        (top, rows), (left, columns) = lines.inside(phase)
        if rows <= 0 or columns <= 0:
            return
        height, width = c.strides
        channel_step = len(lines.phases) * lines.step
        with loop(rows) as row:
            h = (row + top) * height + (phase[0] - c.pads[0])
            source = named(((self.n * c.h + h) * c.w + (left * width + phase[1] - c.pads[1])) * c.ci + channel)
            target = named(channel * channel_step + number * lines.step + (row + top) * lines.width + left)
            squares(
                channels,
                columns,
                self.isa.lanes,
                lambda b, a, k: load(self.x, [source + b * (width * c.ci) + a], k),
                lambda a, b, turned, k: store(self.to, turned, [target + a * channel_step + b], k),
            )


@dataclasses.dataclass(frozen=True)
class _Product:
    """Tiles of positions of sample `n`, by chunks of output channels."""

    p: Pattern
    isa: Isa
    epilogue: Epilogue
    x: Any
    values: Any
    places: Any
    starts: Any
    targets: Any
    bias: Any
    residual: Any
    y: Any
    n: Expr

    def emit(self, tile: Expr, first: Expr, channels: int) -> None:
        """`channels` output channels from `first` on, at the positions of tile number `tile`."""
        p, size = self.p, self.p.tile
        position = named(tile * size)
        groups = -(-channels // p.outputs)
        sums = scratch([groups * p.outputs * size])
        group = named(first // p.outputs)
        with loop(p.blocks) as block, loop(groups) as g:
            entry = named(block * p.groups + group + g)
            target = named(tirx.Cast("int64", self.targets[entry]))
            self._sums(block, entry, group + target, target * (p.outputs * size), position, sums)
        self._finish(position, first, channels, sums)

    def _sums(self, block: Expr, entry: Expr, group: Expr, at: Expr, position: Expr, sums: Any) -> None:
        """The weights of one group of output channels in one block of input channels."""
        p, lanes = self.p, self.p.width
        kinds = [(c, v) for c in range(p.outputs) for v in range(p.vectors)]
        acc = {(u, c, v): vectors(1, lanes)[0] for u in range(p.unroll) for c, v in kinds}
        for (u, c, _), a in acc.items():
            start = splat(self.bias[group * p.outputs + c] if u == 0 and p.blocks == 1 else 0.0, lanes)
            store(a, start, [0], lanes)
        begin, end = (named(tirx.Cast("int64", self.starts[entry + k])) for k in (0, 1))
        with loop(end - begin) as j:
            for u in range(p.unroll):
                number = (begin + j) * p.unroll + u
                place = named(tirx.Cast("int64", self.places[number]) + position)
                inputs = [load(self.x, [place + v * lanes], lanes) for v in range(p.vectors)]
                inputs = inputs if p.outputs == 1 else [named(x) for x in inputs]
                for c in range(p.outputs):
                    weight = named(splat(self.values[number * p.outputs + c], lanes))
                    for v in range(p.vectors):
                        a = acc[u, c, v]
                        store(a, FLOAT.add(load(a, [0], lanes), inputs[v], weight, lanes), [0], lanes)
        for c, v in kinds:
            total = load(acc[0, c, v], [0], lanes)
            for u in range(1, p.unroll):
                total = total + load(acc[u, c, v], [0], lanes)
            to = at + c * p.tile + v * lanes
            if p.blocks > 1:
                before = load(sums, [to], lanes)
                total = total + tirx.if_then_else(block == 0, splat(self.bias[group * p.outputs + c], lanes), before)
            store(sums, total, [to], lanes)

    def _finish(self, position: Expr, first: Expr, channels: int, sums: Any) -> None:
        """Store the sums channels-last, bias included, through the epilogue."""
        p = self.p
        if p.tile == 1:
            runs(channels, self.isa.lanes, lambda k, n: self._store(position, first + k, load(sums, [k], n), n))
            return
        squares(
            p.tile,
            channels,
            self.isa.lanes,
            lambda b, a, n: load(sums, [b * p.tile + a], n),
            lambda a, b, turned, n: self._store(position + a, first + b, turned, n),
        )

    def _store(self, position: Expr, channel: Expr, value: Expr, lanes: int) -> None:
        c, lines = self.p.conv, self.p.lines
        row, column = (position // lines.width, position % lines.width) if c.oh > 1 else (i64(0), position)
        conditions: list[Expr] = []
        if c.oh > 1 and lines.width > c.ow:
            conditions.append(column < c.ow)
        if lines.positions % self.p.tile:
            conditions.append(position < lines.positions)
        exists = when(tirx.all(*conditions)) if conditions else contextlib.nullcontext()
        with exists:
            place = [(self.n * c.oh + row) * c.ow + column, channel]
            store(self.y, self.epilogue.finish(self.residual, value, place, lanes), place, lanes)
