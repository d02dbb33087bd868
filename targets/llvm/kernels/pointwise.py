"""Passes over whole values, channels-last: take channels of several inputs, then arithmetic and activations on them.

Without steps this is a concatenation or a slice, or repeats positions (nearest-neighbour upsampling); with them, one
read of every input and one write for any chain of elementwise operators. A concatenation that only such a pass reads
is never written itself. Inputs and operands may be 8 bits that are dequantized in registers, and the result 8 bits that
are quantized there (see `grid`); bytes that keep their meaning are copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Function,
    Isa,
    function,
    load,
    loop,
    named,
    runs,
    scratch,
    splat,
    store,
)
from graphopt.targets.llvm.kernels.epilogue import Activation
from graphopt.targets.llvm.kernels.formula import Formula
from graphopt.targets.llvm.kernels.grid import Grid

Kind = Literal["full", "channel", "image", "pixel"]
"""Shape of an operand: [N, H, W, C], [C], [N, 1, 1, C] or [N, H, W, 1]."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Channels [start, start + count) of an input [n, *size, channels], for place p at ``p // scale * step + offset``.

    Down and across alike. `dtype`: of the input; `grid`: what its bytes stand for, if they are to be dequantized.
    """

    size: tuple[int, int]
    channels: int
    start: int
    count: int
    scale: tuple[int, int] = (1, 1)
    step: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)
    dtype: Literal["float32", "uint8"] = "float32"
    grid: Grid | None = None

    def plain(self, height: int, width: int) -> bool:
        """Whether the places of an output of this size are the input's positions in order."""
        every = self.scale == self.step == (1, 1) and self.offset == (0, 0)
        return every and self.size == (height, width)


@dataclasses.dataclass(frozen=True)
class Operation:
    """``value op operand``, or ``operand op value`` when `reverse`; `operand` counts the operands."""

    op: Literal["Add", "Sub", "Mul", "Div", "Max", "Min"]
    operand: int
    reverse: bool = False

    def __call__(self, value: Expr, other: Expr) -> Expr:
        """The result for two vectors."""
        a, b = (other, value) if self.reverse else (value, other)
        match self.op:
            case "Add":
                return a + b
            case "Sub":
                return a - b
            case "Mul":
                return a * b
            case "Div":
                return a / b
            case "Max":
                return tirx.Max(a, b)
            case "Min":
                return tirx.Min(a, b)


@dataclasses.dataclass(frozen=True)
class Pointwise:
    """Output [n, h, w, sum of counts]: the segments' channels one after the other, then the steps.

    `grids`: what the bytes of each operand stand for; None where it is float32. `grid`: that of the result.
    """

    n: int | str
    h: int
    w: int
    segments: tuple[Segment, ...]
    operands: tuple[Kind, ...] = ()
    steps: tuple[Operation | Activation | Formula, ...] = ()
    grids: tuple[Grid | None, ...] = ()
    grid: Grid | None = None

    @property
    def copies(self) -> bool:
        """Whether bytes stay what they are."""
        return not self.steps and all(s.dtype == "uint8" and s.grid == self.grid for s in self.segments)

    @property
    def dtype(self) -> str:
        """Of the result."""
        return "uint8" if self.copies or self.grid is not None else "float32"

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return sum(s.count for s in self.segments)

    def operand_shape(self, kind: Kind) -> list[int | str]:
        """The shape of an operand of this kind."""
        shapes: dict[Kind, list[int | str]] = {
            "full": [self.n, self.h, self.w, self.channels],
            "channel": [self.channels],
            "image": [self.n, 1, 1, self.channels],
            "pixel": [self.n, self.h, self.w, 1],
        }
        return shapes[kind]


def make(p: Pointwise, isa: Isa, parallel: bool, name: str = "pointwise") -> tirx.PrimFunc:
    """``f(x0, x1, ..., operand0, operand1, ..., y)``."""
    with function(name) as (f, made):
        shapes: list[list[int | str]] = [[p.n, *s.size, s.channels] for s in p.segments]
        shapes += [p.operand_shape(kind) for kind in p.operands]
        shapes.append([p.n, p.h, p.w, p.channels])
        dtypes: list[str] = [s.dtype for s in p.segments]
        dtypes += ["float32" if grid is None else "uint8" for grid in p.grids or [None] * len(p.operands)]
        dtypes.append(p.dtype)
        arguments = [f.argument(f"x{i}", *of) for i, of in enumerate(zip(shapes, dtypes, strict=True))]
        if _is_flat(p):
            p, shapes = _in_lines(p), [[p.n, p.h, p.w * p.channels] for _ in shapes]
        matrices = [f.matrix(a, shape) for a, shape in zip(arguments, shapes, strict=True)]
        inputs, operands, y = matrices[: len(p.segments)], matrices[len(p.segments) : -1], matrices[-1]
        p, operands = _with_real_images(f, p, isa, operands)
        with loop(f.product([p.n, p.h, p.w]), parallel=parallel) as row:
            start = 0
            for x, segment in zip(inputs, p.segments, strict=True):
                _segment(p, isa, x, operands, y, row, segment, start)
                start += segment.count
    return made[0]


def _is_flat(p: Pointwise) -> bool:
    """Whether every element depends on one element of each input, at the same place."""
    only = p.segments[0]
    whole = len(p.segments) == 1 and only.count == only.channels and only.plain(p.h, p.w)
    return whole and all(kind == "full" for kind in p.operands)


def _in_lines(p: Pointwise) -> Pointwise:
    """A flat problem with its lines as the channels: full vectors however few channels there are."""
    line = p.w * p.channels
    segment = dataclasses.replace(p.segments[0], size=(p.h, 1), channels=line, count=line)
    return dataclasses.replace(p, w=1, segments=(segment,))


def _with_real_images(f: Function, p: Pointwise, isa: Isa, operands: Sequence[Any]) -> tuple[Pointwise, list[Any]]:
    """`p` and its operands with those of kind "image" dequantized: every position reads them."""
    grids, made = list(p.grids), list(operands)
    for index, kind in enumerate(p.operands if p.grids else ()):
        grid = p.grids[index]
        if kind == "image" and grid is not None and p.h * p.w > 1:
            made[index] = _real(f, p, isa, operands[index], grid)
            grids[index] = None
    return dataclasses.replace(p, grids=tuple(grids)), made


def _real(f: Function, p: Pointwise, isa: Isa, q: Any, grid: Grid) -> Any:
    real = scratch([f.dim(p.n), p.channels])
    with loop(f.dim(p.n)) as n:
        runs(
            p.channels,
            isa.lanes,
            lambda at, lanes: store(real, grid.real(load(q, [n, at], lanes), lanes), [n, at], lanes),
        )
    return real


def _segment(
    p: Pointwise, isa: Isa, x: Any, operands: Sequence[Any], y: Any, row: Expr, segment: Segment, to: int
) -> None:
    at = source(p, segment, row)

    def run(channel: Expr, lanes: int) -> None:
        value = load(x, [at, segment.start + channel], lanes)
        if segment.grid is not None and not p.copies:
            value = segment.grid.real(value, lanes)
        for step in p.steps:
            if isinstance(step, Operation):
                value = step(value, operand(step.operand, to + channel, lanes))
            else:
                value = step(value, lanes)
        if p.grid is not None and not p.copies:
            value = p.grid.nearest(value, lanes, isa)
        store(y, value, [row, to + channel], lanes)

    def operand(index: int, channel: Expr, lanes: int) -> Expr:
        grid = p.grids[index] if p.grids else None
        match p.operands[index]:
            case "full":
                value = load(operands[index], [row, channel], lanes)
            case "channel":
                value = load(operands[index], [0, channel], lanes)
            case "image":
                value = load(operands[index], [row // (p.h * p.w), channel], lanes)
            case "pixel":
                value = operands[index][row, 0]
                return splat(value if grid is None else grid.real(value, 1), lanes)
        return value if grid is None else grid.real(value, lanes)

    runs(segment.count, 4 * isa.lanes if p.copies else isa.lanes, run)


def source(p: Pointwise, segment: Segment, row: Expr) -> Expr:
    """The row of a segment's input that output row `row`, counted over images and lines, reads."""
    (down, across), (down_step, across_step), (top, left) = segment.scale, segment.step, segment.offset
    height, width = segment.size
    line, column = row // p.w, row % p.w
    if segment.step == (1, 1) and segment.offset == (0, 0) and p.h == height * down and p.w == width * across:
        if segment.scale == (1, 1):
            return row
        return line // down * width + column // across  # images are p.h lines, a multiple of `down`
    image, line = line // p.h, line % p.h
    line, column = line // down * down_step + top, column // across * across_step + left
    return named((image * height + line) * width + column)
