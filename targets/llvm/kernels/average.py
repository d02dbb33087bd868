"""Average pooling of 8 bits, channels-last: int32 sums of ``q - zero``, then

``y = saturate(rint(float32(sum) * m / count) + zero_y)`` with ``m = float32(s_x / s_y)``, or
``float32(sum) * s_x / count`` where the result is float32. (`reference.average` of `targets/integer` is the same in
numpy.)
"""

from __future__ import annotations

import dataclasses

from tvm import tirx

from graphopt.targets.llvm.kernels.conv import Conv, row_range
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, named, registers, runs, splat, store
from graphopt.targets.llvm.kernels.pool import turned
from graphopt.targets.llvm.kernels.requantise import Range, unfused


@dataclasses.dataclass(frozen=True)
class Average:
    """Means over the windows of `window` (``ci == co``) of values with zero point `zero`.

    `m`: what a step of the input is worth, in steps of the result if that is `range`, else absolutely.
    `count_padding`: divide by the whole window, also where part of it lies in the padding.
    """

    window: Conv
    zero: int
    m: float
    range: Range | None
    count_padding: bool = False


def make(p: Average, isa: Isa, parallel: bool, name: str = "average") -> tirx.PrimFunc:
    """``f(x, y)``: uint8 to uint8, or to float32 without a range."""
    c = p.window
    with function(name) as (f, made):
        x = f.argument("x", [c.n, c.h, c.w, c.ci], "uint8")
        y = f.argument("y", [c.n, c.oh, c.ow, c.co], "float32" if p.range is None else "uint8")
        with loop(f.dim(c.n) * c.oh, parallel=parallel) as row, loop(c.ow) as ow:
            n, oh = row // c.oh, row % c.oh

            def window(channel: Expr, lanes: int) -> None:
                total = registers(lanes, "int32")
                store(total, splat(0, lanes, "int32"), [0], lanes)
                top, left = oh * c.strides[0] - c.pads[0], ow * c.strides[1] - c.pads[1]
                down, across = row_range(top, c), row_range(left, turned(c))
                with loop(down[1], start=down[0]) as kh, loop(across[1], start=across[0]) as kw:
                    at = [n, top + kh * c.dilations[0], left + kw * c.dilations[1], channel]
                    value = tirx.Cast(_vector("int32", lanes), load(x, at, lanes))
                    store(total, load(total, [0], lanes) + value, [0], lanes)
                count = (down[1] - down[0]) * (across[1] - across[0])
                inside = named(tirx.Cast("int32", count)) if isinstance(count, tirx.Expr) else count
                less = load(total, [0], lanes) - splat(inside * p.zero, lanes, "int32")
                mean = tirx.Cast(_vector("float32", lanes), less) * splat(p.m, lanes)
                over = c.kernel[0] * c.kernel[1] if p.count_padding else inside
                over = float(over) if isinstance(over, int) else tirx.Cast("float32", over)
                mean = unfused(mean, lanes) / splat(over, lanes)
                store(y, mean if p.range is None else p.range.round(mean, lanes), [n, oh, ow, channel], lanes)

            runs(c.ci, isa.lanes, window)
    return made[0]


def _vector(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype
