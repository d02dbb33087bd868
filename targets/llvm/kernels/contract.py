"""Integer convolutions and dense layers: uint8 inputs, int8 weights, int32 accumulators, requantised when stored.

The taps of a kernel row and their channels are one run of ``KW * CI`` bytes in a channels-last image (with groups or
dilation: a run for each tap). Accumulators of a tile begin with the bias, in which ``-z_x * sum(w)`` is included, and
take one step (see `arithmetic`) for every few bytes of each run. Weights past the end of a run are zero.

Where there is padding, where runs don't end with a step, or where the arithmetic wants inputs of another type, the
image is copied first, line by line between bytes of the value z_x: every tap exists then and no tile is special. The
copy takes a percent or two of the time of the products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.arithmetic import Dot
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, runs, scratch, splat, store, when
from graphopt.targets.llvm.kernels.requantise import Finish

SLACK = 64  # readable bytes behind a copy


@dataclasses.dataclass(frozen=True)
class Contraction:
    """A convolution, or a dense layer of which ``rows`` are the dimensions before the last one.

    `zero`: the zero point of the input.
    """

    conv: Conv
    zero: int
    rows: tuple[int | str, ...] | None = None

    @property
    def flat(self) -> bool:
        """Whether an output position depends on the same input position only: images are rows then."""
        c = self.conv
        return c.kernel == c.strides == (1, 1) and not any(c.pads) and c.group == 1

    @property
    def taps(self) -> tuple[int, int]:
        """Runs along and across a kernel: a kernel's row is one run where its taps are neighbours."""
        c = self.conv
        return (c.kernel[0], 1 if c.group == 1 and c.dilations[1] == 1 else c.kernel[1])

    @property
    def run(self) -> int:
        """Bytes of a run."""
        c = self.conv
        return c.ci // c.group * (c.kernel[1] // self.taps[1])

    def steps(self, dot: Dot) -> int:
        """Steps of a run."""
        return -(-self.run // dot.depth)

    def staged(self, dot: Dot) -> bool:
        """Whether the input is copied."""
        return any(self.conv.pads) or self.run % dot.depth != 0 or dot.staged != "uint8"

    @property
    def shapes(self) -> tuple[list[int | str], list[int | str]]:
        """Dimensions of input and output."""
        c = self.conv
        if self.rows is not None:
            return [*self.rows, c.ci], [*self.rows, c.co]
        return [c.n, c.h, c.w, c.ci], [c.n, c.oh, c.ow, c.co]


def room(isa: Isa, dot: Dot) -> Isa:
    """`isa` without the registers that the arithmetic needs for itself."""
    return dataclasses.replace(isa, registers=isa.registers - dot.extra)


def as_runs(weight: np.ndarray[Any, Any], p: Contraction) -> np.ndarray[Any, Any]:
    """[CO, CI/group, KH, KW] -> [CO, runs, bytes of a run]."""
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(len(weight), p.taps[0] * p.taps[1], p.run)


def pack(weight: np.ndarray[Any, Any], p: Contraction, dot: Dot, lanes: int) -> np.ndarray[Any, Any]:
    """[CO, CI/group, KH, KW] -> [group, blocks, runs * steps, lanes * depth], zeros past each end."""
    group, each = p.conv.group, p.conv.co // p.conv.group
    blocks, steps = -(-each // lanes), p.steps(dot)
    taps = p.taps[0] * p.taps[1]
    padded = np.zeros((group, blocks * lanes, taps, steps * dot.depth), np.int8)
    padded[:, :each, :, : p.run] = as_runs(weight, p).reshape(group, each, taps, p.run)
    split = padded.reshape(group, blocks, lanes, taps, steps, dot.depth).transpose(0, 1, 3, 4, 2, 5)
    return np.ascontiguousarray(split).reshape(group, blocks, taps * steps, lanes * dot.depth)


def pack_bias(
    bias: np.ndarray[Any, Any], weight: np.ndarray[Any, Any], p: Contraction, dot: Dot, lanes: int
) -> np.ndarray[Any, Any]:
    """int32 [group * blocks * lanes]: ``bias - z_x * sum(w)``, z_x in the staged type; wraps around."""
    zero = p.zero - (128 if dot.staged == "int8" else 0)
    total = bias.astype(np.int64) - zero * weight.astype(np.int64).sum(axis=(1, 2, 3))
    group, each = p.conv.group, p.conv.co // p.conv.group
    padded = np.zeros((group, -(-each // lanes) * lanes), np.int64)
    padded[:, :each] = total.reshape(group, each)
    return padded.reshape(-1).astype(np.int32)


def make(p: Contraction, dot: Dot, isa: Isa, finish: Finish, parallel: bool, name: str) -> tirx.PrimFunc:
    """``f(x, weights, bias, m[, residual], y)`` for packed weights and bias, and float32 m [CO]."""
    c, lanes = p.conv, isa.lanes
    blocks = -(-c.co // c.group // lanes)
    inputs, outputs = p.shapes
    with function(name) as (f, made):
        x = f.argument("x", inputs, "uint8")
        w = f.argument("w", [c.group, blocks, p.taps[0] * p.taps[1] * p.steps(dot), lanes * dot.depth], "int8")
        b = f.argument("b", [c.group * blocks * lanes], "int32")
        m = f.argument("m", [c.co])
        r = f.argument("r", outputs, finish.addend) if finish.addend else None
        y = f.argument("y", outputs, finish.dtype)
        y, r = f.matrix(y, outputs), None if r is None else f.matrix(r, outputs)
        product = _Product(p, dot, isa, finish, w, b, m, r, y)
        if p.flat:
            positions = f.product(inputs[:-1])
            image = f.view(x, [1, positions * c.ci])
            if p.staged(dot):
                image = _stage_flat(dot, isa, image, positions * c.ci)
            product.flat(image, positions, parallel)
        elif p.staged(dot):
            lines = f.view(x, [f.dim(c.n) * c.h, c.w * c.ci])
            padded = scratch([c.h + c.pads[0] + c.pads[2], (c.w + c.pads[1] + c.pads[3]) * c.ci + SLACK], dot.staged)
            with loop(f.dim(c.n)) as n:
                stage(p, dot, isa, lines, n, padded, parallel)
                product.rows(padded, c.oh, lambda r: r * c.strides[0], lambda r: n * c.oh + r, parallel)
        else:
            lines = f.view(x, [f.dim(c.n) * c.h, c.w * c.ci])
            rows = f.dim(c.n) * c.oh
            product.rows(lines, rows, lambda r: r // c.oh * c.h + r % c.oh * c.strides[0], lambda r: r, parallel)
    return made[0]


def stage(p: Contraction, dot: Dot, isa: Isa, lines: Any, n: Expr, padded: Any, parallel: bool) -> None:
    """Image `n` of `lines` into the middle of `padded`, z_x around it."""
    c = p.conv
    top, left, bottom, right = c.pads
    width, pitch = c.w * c.ci, (left + c.w + right) * c.ci
    most = 4 * isa.lanes

    def edge(row: Expr, start: int, count: int) -> None:
        def fill(at: Expr, lanes: int) -> None:
            store(padded, dot.stage(splat(p.zero, lanes, "uint8"), lanes), [row, start + at], lanes)

        runs(count, most, fill)

    for start, count in ((0, top), (top + c.h, bottom)):
        if count:
            with loop(count) as row:
                edge(start + row, 0, pitch)
    with loop(c.h, parallel=parallel) as row:
        edge(top + row, 0, left * c.ci)

        def copy(at: Expr, lanes: int) -> None:
            value = load(lines, [n * c.h + row, at], lanes)
            store(padded, dot.stage(value, lanes), [top + row, left * c.ci + at], lanes)

        runs(width, most, copy)
        edge(top + row, left * c.ci + width, right * c.ci)


def _stage_flat(dot: Dot, isa: Isa, image: Any, size: Expr) -> Any:
    """All of `image` in the staged type, with some bytes to read behind it."""
    copy, most = scratch([1, size + SLACK], dot.staged), 4 * isa.lanes
    with loop(size // most) as v:
        store(copy, dot.stage(load(image, [0, v * most], most), most), [0, v * most], most)
    if not isinstance(size, int) or size % most:
        with loop(size, start=size // most * most) as i:
            store(copy, dot.stage(load(image, [0, i], 1), 1), [0, i], 1)
    return copy


@dataclasses.dataclass(frozen=True)
class _Product:
    p: Contraction
    dot: Dot
    isa: Isa
    finish: Finish
    w: Any
    b: Any
    m: Any
    r: Any
    y: Any

    @property
    def blocks(self) -> int:
        """Vectors of output channels in a group."""
        return -(-self.p.conv.co // self.p.conv.group // self.isa.lanes)

    def shape(self, positions: int) -> tile.Shape:
        """The tile for so many output positions in a line."""
        return tile.choose(positions, self.blocks, room(self.isa, self.dot))

    def panels(self, cols: int) -> list[tuple[int, int, int]]:
        """Panels of columns as (first, columns, number): whole ones, in which every channel exists, and the rest."""
        whole = self.p.conv.co // self.p.conv.group // self.isa.lanes // cols
        rest = [(first, min(cols, self.blocks - first), 1) for first in range(whole * cols, self.blocks, cols)]
        return ([(0, cols, whole)] if whole else []) + rest

    def flat(self, image: Any, positions: Expr, parallel: bool) -> None:
        """All positions, which are rows of a matrix."""
        shape = self.shape(positions if isinstance(positions, int) else 1 << 20)
        tiles, rest = positions // shape.rows, positions % shape.rows
        for first, cols, number in self.panels(shape.cols):
            with loop(tiles * number, parallel=parallel) as t:
                block = first if number == 1 else t // tiles * cols
                self._tile(image, 0, 0, t % tiles * shape.rows, 0, block, tile.Shape(shape.rows, cols))
            if isinstance(rest, int) and rest == 0:
                continue
            done = tiles * shape.rows
            with loop(number) as t:
                block = first if number == 1 else t * cols
                if isinstance(rest, int):
                    self._tile(image, 0, 0, done, 0, block, tile.Shape(rest, cols))
                    continue
                for size in [1 << bit for bit in reversed(range((shape.rows - 1).bit_length()))]:
                    with when(rest // size % 2 == 1):
                        at = done + rest // (2 * size) * (2 * size)
                        self._tile(image, 0, 0, at, 0, block, tile.Shape(size, cols))

    def rows(
        self, image: Any, count: Expr, line: Callable[[Expr], Expr], out: Callable[[Expr], Expr], parallel: bool
    ) -> None:
        """Output rows: row r reads `image` from ``line(r)`` on, and is ``out(r)`` of the result."""
        c = self.p.conv
        shape = self.shape(c.ow)
        for first, cols, number in self.panels(shape.cols):
            with loop(count * number * c.group, parallel=parallel) as t:
                r, panel = t % count, t // count
                block, g = (first, panel) if number == 1 else (panel % number * cols, panel // number)
                if c.group == 1:
                    g = 0
                start, position = line(r), out(r) * c.ow
                if c.ow >= shape.rows:
                    with loop(c.ow // shape.rows) as i:
                        self._tile(image, start, position, i * shape.rows, g, block, tile.Shape(shape.rows, cols))
                if c.ow % shape.rows:
                    last = c.ow - c.ow % shape.rows
                    self._tile(image, start, position, last, g, block, tile.Shape(c.ow % shape.rows, cols))

    def _tile(
        self, image: Any, line: Expr, position: Expr, column: Expr, g: Expr, block: Expr, shape: tile.Shape
    ) -> None:
        """Output columns from `column` on, which are positions from ``position + column`` on of the result."""
        c, dot, lanes, steps = self.p.conv, self.dot, self.isa.lanes, self.p.steps(self.dot)
        each, down, across = c.co // c.group, *self.p.taps
        acc = tile.Accumulators(
            shape, self.isa, lambda j: load(self.b, [((g * self.blocks) + block + j) * lanes], lanes), dot
        )
        with loop(down) as kh, loop(across) as kw, loop(steps) as s:
            acc.step(
                range(shape.rows),
                lambda i: dot.input(
                    image,
                    [
                        line + kh * c.dilations[0],
                        ((column + i) * c.strides[1] + kw * c.dilations[1]) * c.ci
                        + g * (c.ci // c.group)
                        + s * dot.depth,
                    ],
                ),
                lambda j: dot.weights(self.w, [g, block + j, (kh * across + kw) * steps + s, 0], lanes),
            )
        partial = isinstance(block, int) and block + shape.cols == self.blocks
        acc.write(
            [*[lanes] * (shape.cols - 1), each - (self.blocks - 1) * lanes if partial else lanes],
            lambda i, j, offset: [position + column + i, g * each + (block + j) * lanes + offset],
            lambda value, at, width: self.finish(value, self.m, self.r, at, width),
            self.y,
            together=(
                (lambda values, at: self.finish.together(values, self.m, self.r, at, lanes))
                if self.finish.packs(self.isa)
                else None
            ),
        )
