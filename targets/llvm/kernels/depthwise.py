"""Depthwise convolution, channels-last: every channel has its own kernel, so vectors run along the channels throughout.

A tile is `rows` output columns of one vector of channels. Along a kernel row each input column is loaded once and
multiplied into all the outputs it belongs to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.packed import Steps, reshape, run, transpose
from graphopt.targets.llvm.kernels.conv import Conv, row_range
from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Isa,
    function,
    load,
    loop,
    named,
    runs,
    store,
    vectors,
)
from graphopt.targets.llvm.kernels.epilogue import Epilogue


def pack(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[C, 1, KH, KW] -> [KH, KW, C]."""
    return run(weight, packing(weight.shape))


def packing(shape: Sequence[int]) -> Steps:
    """The steps of `pack`."""
    c, _, kh, kw = shape
    return reshape(c, kh, kw), transpose(1, 2, 0)


def make(c: Conv, isa: Isa, epilogue: Epilogue, parallel: bool, name: str = "depthwise") -> tirx.PrimFunc:
    """``f(x, weights, bias[, residual], y)`` for packed weights and a bias [C]; ``c.ci == c.co``."""
    with function(name) as (f, made):
        x = f.argument("x", [c.n, c.h, c.w, c.ci])
        w = f.argument("w", [*c.kernel, c.ci])
        b = f.argument("b", [c.ci])
        residual = f.argument("r", [c.n, c.oh, c.ow, c.co]) if epilogue.residual else None
        y = f.argument("y", [c.n, c.oh, c.ow, c.co])
        with loop(f.dim(c.n) * c.oh, parallel=parallel) as p:
            runs(c.ci, isa.lanes, _Row(c, isa, epilogue, x, w, b, residual, y, p // c.oh, p % c.oh).emit)
    return made[0]


@dataclasses.dataclass(frozen=True)
class _Row:
    """One output row."""

    c: Conv
    isa: Isa
    epilogue: Epilogue
    x: Any
    w: Any
    b: Any
    residual: Any
    y: Any
    n: Expr
    oh: Expr

    def emit(self, channel: Expr, lanes: int) -> None:
        """All columns, for `lanes` channels from `channel` on."""
        c = self.c
        # accumulators, a row of weights and one input in registers
        step = min(c.ow, max(1, (self.isa.registers - c.kernel[1] - 2) // 2))
        starts = range(0, c.ow, step)
        inside = [s for s in starts if s + step <= c.ow and self._column(s, 0) >= 0 and self._reach(s + step - 1) < c.w]
        for s in starts:
            if s not in inside:
                self._tile(channel, lanes, s, min(step, c.ow - s), s)
            elif s == inside[0]:
                with loop(len(inside)) as t:
                    self._tile(channel, lanes, inside[0] + t * step, step, None)

    def _column(self, column: Expr, kw: int) -> Expr:
        return column * self.c.strides[1] + kw * self.c.dilations[1] - self.c.pads[1]

    def _reach(self, column: int) -> int:
        return self._column(column, self.c.kernel[1] - 1)

    def _tile(self, channel: Expr, lanes: int, start: Expr, columns: int, border: int | None) -> None:
        """`border`: the first column when the tile may reach outside the image, None inside."""
        c = self.c
        acc = vectors(columns, lanes)
        for i in range(columns):
            store(acc[i], load(self.b, [channel], lanes), [0], lanes)
        top = self.oh * c.strides[0] - c.pads[0]
        low, high = row_range(top, c)
        with loop(high, start=low) as kh:
            ih = top + kh * c.dilations[0]
            for offset, users in self._uses(columns).items():
                if border is not None and not 0 <= self._column(border, 0) + offset < c.w:
                    continue
                value = named(load(self.x, [self.n, ih, self._column(start, 0) + offset, channel], lanes))
                for i, kw in users:
                    product = value * load(self.w, [kh, kw, channel], lanes)
                    store(acc[i], load(acc[i], [0], lanes) + product, [0], lanes)
        for i in range(columns):
            place = [self.n, self.oh, start + i, channel]
            store(self.y, self.epilogue.finish(self.residual, load(acc[i], [0], lanes), place, lanes), place, lanes)

    def _uses(self, columns: int) -> dict[int, list[tuple[int, int]]]:
        """Input column (from the tile's first) -> the (output column, kernel column) pairs that read it."""
        uses: dict[int, list[tuple[int, int]]] = {}
        for i in range(columns):
            for kw in range(self.c.kernel[1]):
                uses.setdefault(i * self.c.strides[1] + kw * self.c.dilations[1], []).append((i, kw))
        return dict(sorted(uses.items()))
