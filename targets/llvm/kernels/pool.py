"""Max and average pooling, channels-last: vectors run along the channels, windows are clipped by the loops' bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from tvm import tirx

from graphopt.targets.llvm.kernels.conv import Conv, row_range
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, registers, runs, splat, store
from graphopt.targets.llvm.kernels.gemm import Source

LOWEST = -3.4028234663852886e38


def make(
    c: Conv,
    isa: Isa,
    maximum: bool,
    count_padding: bool,
    parallel: bool,
    name: str = "pool",
    sources: Sequence[Source] = (),
    dtype: Literal["float32", "uint8"] = "float32",
) -> tirx.PrimFunc:
    """``f(x, y)`` for the windows of `c` (``ci == co``), or ``f(x0, x1, ..., y)`` where the channels have `sources`.

    Of uint8 there are maxima only (`average` has the means).

    Averages divide by the window's size, with what of it lies in the padding when `count_padding`, else without.
    """
    with function(name) as (f, made):
        sources = sources or [Source(c.ci, 0, c.ci)]
        inputs = [f.argument(f"x{i}", [c.n, c.h, c.w, source.channels], dtype) for i, source in enumerate(sources)]
        y = f.argument("y", [c.n, c.oh, c.ow, c.co], dtype)
        with loop(f.dim(c.n) * c.oh, parallel=parallel) as p, loop(c.ow) as ow:
            first = 0
            for x, source in zip(inputs, sources, strict=True):
                window = _Window(c, maximum, count_padding, x, y, source.start, first, p // c.oh, p % c.oh, ow)
                runs(source.count, isa.lanes * (1 if dtype == "float32" else 4), window.emit)
                first += source.count
    return made[0]


@dataclasses.dataclass(frozen=True)
class _Window:
    """One place of the output; channels from `start` of the input are those from `first` of the output."""

    c: Conv
    maximum: bool
    count_padding: bool
    x: Any
    y: Any
    start: int
    first: int
    n: Expr
    oh: Expr
    ow: Expr

    def emit(self, channel: Expr, lanes: int) -> None:
        """`lanes` channels from `channel` on."""
        c = self.c
        dtype = self.x.dtype
        acc = registers(lanes, dtype)
        least = LOWEST if dtype == "float32" else 0
        store(acc, splat(least if self.maximum else 0, lanes, dtype), [0], lanes)
        top, left = self.oh * c.strides[0] - c.pads[0], self.ow * c.strides[1] - c.pads[1]
        rows, columns = row_range(top, c), row_range(left, turned(c))
        with loop(rows[1], start=rows[0]) as kh, loop(columns[1], start=columns[0]) as kw:
            at = [self.n, top + kh * c.dilations[0], left + kw * c.dilations[1], self.start + channel]
            value, sofar = load(self.x, at, lanes), load(acc, [0], lanes)
            store(acc, tirx.Max(sofar, value) if self.maximum else sofar + value, [0], lanes)
        total = load(acc, [0], lanes)
        if not self.maximum and self.count_padding:
            total = total * splat(1 / (c.kernel[0] * c.kernel[1]), lanes)
        elif not self.maximum:
            count = (rows[1] - rows[0]) * (columns[1] - columns[0])
            total = total / splat(tirx.Cast("float32", count) if isinstance(count, tirx.Expr) else count, lanes)
        store(self.y, total, [self.n, self.oh, self.ow, self.first + channel], lanes)


def turned(c: Conv) -> Conv:
    """`c` with rows and columns exchanged."""
    top, left, bottom, right = c.pads
    (kh, kw), (sh, sw), (dh, dw) = c.kernel, c.strides, c.dilations
    return Conv(c.n, c.w, c.h, c.ci, c.co, (kw, kh), (sw, sh), (dw, dh), (left, top, right, bottom), c.group)
