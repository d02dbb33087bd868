"""Depthwise convolution, channels-last: every channel has its own kernel, so vectors run along the channels throughout.

A tile is `rows` output columns of one vector of channels. Along a kernel row each input column is loaded once and
multiplied into all the outputs it belongs to.

Nothing is summed over channels, so integer dot products don't apply. Quantized inputs and weights are made float32 in
registers, where their products and sums are exact up to `EXACT` taps: float32 multiply-adds give the int32 sums.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels.conv import Conv, row_range
from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Function,
    Isa,
    function,
    load,
    loop,
    named,
    runs,
    splat,
    store,
    vectors,
)
from graphopt.targets.llvm.kernels.epilogue import Epilogue
from graphopt.targets.llvm.kernels.requantise import Finish, as_float

EXACT = 514
"""Taps up to which ``sum |x - z| * |w| <= taps * 255 * 128`` fits the 24 bits of a float32."""


def pack(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[C, 1, KH, KW] -> [KH, KW, C]."""
    return np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))


def make(c: Conv, isa: Isa, epilogue: Epilogue, parallel: bool, name: str = "depthwise") -> tirx.PrimFunc:
    """``f(x, weights, bias[, residual], y)`` for packed weights and a bias [C]; ``c.ci == c.co``."""
    with function(name) as (f, made):
        x = f.argument("x", [c.n, c.h, c.w, c.ci])
        w = f.argument("w", [*c.kernel, c.ci])
        b = f.argument("b", [c.ci])
        residual = f.argument("r", [c.n, c.oh, c.ow, c.co]) if epilogue.residual else None
        y = f.argument("y", [c.n, c.oh, c.ow, c.co])
        _rows(f, c, isa, _Float(epilogue, x, w, b, residual), y, parallel)
    return made[0]


def quantized(c: Conv, isa: Isa, zero: int, finish: Finish, parallel: bool, name: str) -> tirx.PrimFunc:
    """``f(x, weights, bias, m[, residual], y)`` for uint8 x of this zero point, packed weights, int32 bias [C].

    Weights are int8 values as float32: made so at each use they would take longer than their products.
    m is float32 [C]; see `requantise`.
    """
    with function(name) as (f, made):
        x = f.argument("x", [c.n, c.h, c.w, c.ci], "uint8")
        w = f.argument("w", [*c.kernel, c.ci])
        b = f.argument("b", [c.ci], "int32")
        m = f.argument("m", [c.ci])
        residual = f.argument("r", [c.n, c.oh, c.ow, c.co], finish.addend) if finish.addend else None
        y = f.argument("y", [c.n, c.oh, c.ow, c.co], finish.dtype)
        _rows(f, c, isa, _Quantized(finish, zero, x, w, b, m, residual), y, parallel)
    return made[0]


def _rows(f: Function, c: Conv, isa: Isa, ends: _Float | _Quantized, y: Any, parallel: bool) -> None:
    with loop(f.dim(c.n) * c.oh, parallel=parallel) as p:
        runs(c.ci, isa.lanes, _Row(c, isa, ends, y, p // c.oh, p % c.oh).emit)


@dataclasses.dataclass(frozen=True)
class _Float:
    """Inputs, weights, and what becomes of the sums: all float32."""

    epilogue: Epilogue
    x: Any
    w: Any
    b: Any
    residual: Any

    def input(self, place: list[Expr], lanes: int) -> Expr:
        return load(self.x, place, lanes)

    def weight(self, place: list[Expr], lanes: int) -> Expr:
        return load(self.w, place, lanes)

    def start(self, channel: Expr, lanes: int) -> Expr:
        return load(self.b, [channel], lanes)

    def finish(self, total: Expr, place: list[Expr], lanes: int) -> Expr:
        return self.epilogue.finish(self.residual, total, place, lanes)


@dataclasses.dataclass(frozen=True)
class _Quantized:
    """8-bit inputs and weights as float32, integer sums of them."""

    requantise: Finish
    zero: int
    x: Any
    w: Any
    b: Any
    m: Any
    residual: Any

    def input(self, place: list[Expr], lanes: int) -> Expr:
        return as_float(load(self.x, place, lanes), lanes) - splat(float(self.zero), lanes)

    def weight(self, place: list[Expr], lanes: int) -> Expr:
        return load(self.w, place, lanes)

    def start(self, channel: Expr, lanes: int) -> Expr:
        return splat(0.0, lanes)

    def finish(self, total: Expr, place: list[Expr], lanes: int) -> Expr:
        whole = tirx.Cast(f"int32x{lanes}" if lanes > 1 else "int32", total)
        return self.requantise(whole + load(self.b, [place[-1]], lanes), self.m, self.residual, place, lanes)


@dataclasses.dataclass(frozen=True)
class _Row:
    """One output row."""

    c: Conv
    isa: Isa
    ends: _Float | _Quantized
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
            store(acc[i], self.ends.start(channel, lanes), [0], lanes)
        top = self.oh * c.strides[0] - c.pads[0]
        low, high = row_range(top, c)
        with loop(high, start=low) as kh:
            ih = top + kh * c.dilations[0]
            for offset, users in self._uses(columns).items():
                if border is not None and not 0 <= self._column(border, 0) + offset < c.w:
                    continue
                value = named(self.ends.input([self.n, ih, self._column(start, 0) + offset, channel], lanes))
                for i, kw in users:
                    product = value * self.ends.weight([kh, kw, channel], lanes)
                    store(acc[i], load(acc[i], [0], lanes) + product, [0], lanes)
        for i in range(columns):
            place = [self.n, self.oh, start + i, channel]
            store(self.y, self.ends.finish(load(acc[i], [0], lanes), place, lanes), place, lanes)

    def _uses(self, columns: int) -> dict[int, list[tuple[int, int]]]:
        """Input column (from the tile's first) -> the (output column, kernel column) pairs that read it."""
        uses: dict[int, list[tuple[int, int]]] = {}
        for i in range(columns):
            for kw in range(self.c.kernel[1]):
                uses.setdefault(i * self.c.strides[1] + kw * self.c.dilations[1], []).append((i, kw))
        return dict(sorted(uses.items()))
