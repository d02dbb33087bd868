"""Max and average pooling, channels-last: vectors run along the channels, windows are clipped by the loops' bounds."""

from __future__ import annotations

from tvm import tirx

from graphopt.targets.llvm.kernels.conv import Conv, row_range
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, registers, runs, splat, store

LOWEST = -3.4028234663852886e38


def make(c: Conv, isa: Isa, maximum: bool, count_padding: bool, parallel: bool, name: str = "pool") -> tirx.PrimFunc:
    """``f(x, y)`` for the windows of `c` (``ci == co``).

    Averages divide by the window's size, with what of it lies in the padding when `count_padding`, else without.
    """
    with function(name) as (f, made):
        x = f.argument("x", [c.n, c.h, c.w, c.ci])
        y = f.argument("y", [c.n, c.oh, c.ow, c.co])
        with loop(f.dim(c.n) * c.oh, parallel=parallel) as p, loop(c.ow) as ow:
            n, oh = p // c.oh, p % c.oh

            def window(channel: Expr, lanes: int) -> None:
                acc = registers(lanes)
                store(acc, splat(LOWEST if maximum else 0.0, lanes), [0], lanes)
                top, left = oh * c.strides[0] - c.pads[0], ow * c.strides[1] - c.pads[1]
                rows, columns = row_range(top, c), row_range(left, _turned(c))
                with loop(rows[1], start=rows[0]) as kh, loop(columns[1], start=columns[0]) as kw:
                    at = [n, top + kh * c.dilations[0], left + kw * c.dilations[1], channel]
                    value, sofar = load(x, at, lanes), load(acc, [0], lanes)
                    store(acc, tirx.Max(sofar, value) if maximum else sofar + value, [0], lanes)
                total = load(acc, [0], lanes)
                if not maximum and count_padding:
                    total = total * splat(1 / (c.kernel[0] * c.kernel[1]), lanes)
                elif not maximum:
                    count = (rows[1] - rows[0]) * (columns[1] - columns[0])
                    total = total / splat(tirx.Cast("float32", count) if isinstance(count, tirx.Expr) else count, lanes)
                store(y, total, [n, oh, ow, channel], lanes)

            runs(c.ci, isa.lanes, window)
    return made[0]


def _turned(c: Conv) -> Conv:
    """`c` with rows and columns exchanged."""
    top, left, bottom, right = c.pads
    (kh, kw), (sh, sw), (dh, dw) = c.kernel, c.strides, c.dilations
    return Conv(c.n, c.w, c.h, c.ci, c.co, (kw, kh), (sw, sh), (dw, dh), (left, top, right, bottom), c.group)
