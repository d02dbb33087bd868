"""Depthwise convolution of 8-bit values, channels-last: its input is made four bytes for each element first.

Nothing is summed over channels, so a dot product has to sum over taps. A band of lines is copied for a vector of
channels, between columns of padding, so that every tap of a line exists. An element of the copy is

- with an instruction that sums four products: the bytes of four neighbouring columns, ``x[w], x[w+1], x[w+2], x[w+3]``.
  A step is four taps of a kernel's row then. From right to left each element is the one before, shifted by a byte;
- else ``float32(x - z)``: products and their sums are exact up to `EXACT` taps, so float32 multiply-adds give the int32
  sums. A step is one tap.

Made anew for each tap, either would take longer than the products.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels.arithmetic import Dot, choose
from graphopt.targets.llvm.kernels.conv import Conv, row_range
from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Isa,
    function,
    load,
    loop,
    named,
    pieces,
    scratch,
    splat,
    store,
    vectors,
    when,
)
from graphopt.targets.llvm.kernels.requantise import Finish, as_float

Array = np.ndarray[Any, Any]
EXACT = 514
"""Taps up to which ``sum |x - z| * |w| <= taps * 255 * 128`` fits the 24 bits of a float32."""
LEAST = 4  # lanes of the smallest register that a dot product works on
BAND = 4096  # bytes of a copy for each lane: 64 KiB where a vector has 16


@dataclasses.dataclass(frozen=True)
class Depthwise:
    """The convolution, the zero point of its input, and the instruction that sums four products, if there is one."""

    conv: Conv
    zero: int
    dot: Dot | None

    @property
    def steps(self) -> int:
        """Steps of a kernel's row."""
        across = self.conv.kernel[1]
        return across if self.dot is None else -(-across // 4)

    @property
    def columns(self) -> int:
        """Of the copy."""
        c = self.conv
        last = 4 * (self.steps - 1) if self.dot is not None else (self.steps - 1) * c.dilations[1]
        return max(c.pads[1] + c.w, (c.ow - 1) * c.strides[1] + last + 1)

    @property
    def channels(self) -> int:
        """Of the packed constants."""
        return self.conv.co if self.dot is None else -(-self.conv.co // LEAST) * LEAST

    def lines(self, rows: int) -> int:
        """Input lines that so many output rows read."""
        c = self.conv
        return (rows - 1) * c.strides[0] + (c.kernel[0] - 1) * c.dilations[0] + 1

    def band(self) -> int:
        """Output rows of a band."""
        fitting = [rows for rows in range(1, self.conv.oh + 1) if 4 * self.columns * self.lines(rows) <= BAND]
        bands = -(-self.conv.oh // max(fitting, default=1))
        return -(-self.conv.oh // bands)


def problem(c: Conv, zero: int, isa: Isa) -> Depthwise:
    """`c` with the arithmetic that suits it."""
    dot = choose(isa, np.full((1, 4), -128, np.int8))
    apt = dot.name in ("vpdpbusd", "usdot", "sdot") and c.kernel[1] > 1 and c.dilations[1] == 1
    return Depthwise(c, zero, dot if apt else None)


def pack(weight: Array, p: Depthwise) -> Array:
    """int8 [C, 1, KH, KW] -> float32 [KH, KW, C], or int8 [KH, steps, channels * 4] with zeros past each end."""
    turned = np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))
    if p.dot is None:
        return turned.astype(np.float32)
    down, across, channels = turned.shape
    padded = np.zeros((down, p.steps * 4, p.channels), np.int8)
    padded[:, :across, :channels] = turned
    split = padded.reshape(down, p.steps, 4, p.channels).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(split).reshape(down, p.steps, p.channels * 4)


def pack_bias(bias: Array, weight: Array, p: Depthwise) -> Array:
    """int32 [rows, channels]: the bias, and with a dot product ``z_x * sum(w)`` of no, one... all rows of a kernel.

    z_x in the staged type. Wraps around.
    """
    rows = bias.astype(np.int64)[None]
    if p.dot is not None:
        zero = p.zero - (128 if p.dot.staged == "int8" else 0)
        sums = zero * weight.astype(np.int64).sum(axis=(1, 3)).T
        rows = np.concatenate([rows, np.zeros_like(rows), np.cumsum(sums, axis=0)])
    return np.pad(rows, ((0, 0), (0, p.channels - rows.shape[1]))).astype(np.int32)


def make(p: Depthwise, isa: Isa, finish: Finish, parallel: bool, name: str) -> tirx.PrimFunc:
    """``f(x, weights, bias, m[, residual], y)`` for uint8 x, packed weights and bias; m is float32 [C]."""
    c = p.conv
    shape = [c.n, c.oh, c.ow, c.co]
    with function(name) as (f, made):
        x = f.argument("x", [c.n, c.h, c.w, c.ci], "uint8")
        if p.dot is None:
            w = f.argument("w", [*c.kernel, c.ci])
        else:
            w = f.argument("w", [c.kernel[0], p.steps, p.channels * 4], "int8")
        b = f.argument("b", [1 if p.dot is None else c.kernel[0] + 2, p.channels], "int32")
        m = f.argument("m", [c.ci])
        residual = f.argument("r", shape, finish.addend) if finish.addend else None
        y = f.argument("y", shape, finish.dtype)
        rows, whole = p.band(), c.co // isa.lanes
        bands = -(-c.oh // rows)

        def copy() -> Any:
            return scratch([p.lines(rows), p.columns * isa.lanes], "float32" if p.dot is None else "int32")

        shared = None if parallel else copy()
        parts = [(0, whole, isa.lanes, isa.lanes)] if whole else []
        parts += [(whole * isa.lanes + at, 1, lanes, valid) for at, lanes, valid in _rest(p, c.co % isa.lanes, isa)]
        for first, number, lanes, valid in parts:
            with loop(f.dim(c.n) * bands * number, parallel=parallel) as t:
                at, block = (t, first) if number == 1 else (t // number, t % number * lanes)
                n, top = at // bands, named(at % bands * rows)
                work = _Work(p, isa, finish, x, w, b, m, residual, y, copy() if shared is None else shared)
                work.stage(n, top, block, lanes, valid, p.lines(rows))
                count = rows if c.oh % rows == 0 else tirx.Min(tirx.IntImm("int64", rows), c.oh - top)
                with loop(count) as row:
                    work.row(n, top + row, row * c.strides[0], block, lanes, valid)
    return made[0]


def _rest(p: Depthwise, count: int, isa: Isa) -> list[tuple[int, int, int]]:
    """The last channels as (start, lanes, how many exist)."""
    if p.dot is None:
        return [(start, width, width) for start, width in pieces(count, isa.lanes)]
    padded = -(-count // LEAST) * LEAST
    return [(start, width, min(width, count - start)) for start, width in pieces(padded, isa.lanes)]


@dataclasses.dataclass(frozen=True)
class _Work:
    """On one band, for `lanes` channels from `block` on, of which `valid` exist."""

    p: Depthwise
    isa: Isa
    finish: Finish
    x: Any
    w: Any
    b: Any
    m: Any
    residual: Any
    y: Any
    copy: Any

    def stage(self, n: Expr, top: Expr, block: Expr, lanes: int, valid: int, lines: int) -> None:
        """The lines that output rows from `top` on read."""
        c = self.p.conv
        with loop(lines) as line:
            at = named(top * c.strides[0] - c.pads[0] + line)
            with when(tirx.all(at >= 0, at < c.h)):
                self._line(n, at, line, block, lanes, valid)

    def _nothing(self, lanes: int) -> Expr:
        """An element of the padding."""
        if self.p.dot is None:
            return splat(0.0, lanes)
        byte = self.p.zero ^ (128 if self.p.dot.staged == "int8" else 0)
        return splat(int(np.array([byte] * 4, np.uint8).view(np.int32)[0]), lanes, "int32")

    def _line(self, n: Expr, at: Expr, line: Expr, block: Expr, lanes: int, valid: int) -> None:
        """Line `at` of the image."""
        c, left = self.p.conv, self.p.conv.pads[1]
        if self.p.columns > left + c.w:
            with loop(self.p.columns, start=left + c.w) as column:
                store(self.copy, self._nothing(lanes), [line, column * lanes], lanes)
        for start, width in pieces(valid, lanes):
            if self.p.dot is None:
                with loop(c.w) as i:
                    real = as_float(load(self.x, [n, at, i, block + start], width), width)
                    place = [line, (left + i) * lanes + start]
                    store(self.copy, real - splat(float(self.p.zero), width), place, width)
            else:
                self._neighbours(n, at, line, block, start, lanes, width)
        if left and self.p.dot is None:
            with loop(left) as column:
                store(self.copy, self._nothing(lanes), [line, column * lanes], lanes)

    def _neighbours(self, n: Expr, at: Expr, line: Expr, block: Expr, start: int, lanes: int, width: int) -> None:
        """Columns from right to left."""
        c, left = self.p.conv, self.p.conv.pads[1]
        assert self.p.dot is not None
        signed = self.p.dot.staged == "int8"
        (last,) = vectors(1, width, "int32")
        eight = splat(8, width, "int32")
        store(last, self._nothing(width), [0], width)
        with loop(c.w) as i:
            column = named(c.w - 1 - i)
            byte = load(self.x, [n, at, column, block + start], width)
            byte = byte ^ splat(128, width, "uint8") if signed else byte
            fresh = tirx.Cast("int32" if width == 1 else f"int32x{width}", byte)
            value = named((load(last, [0], width) << eight) | fresh)
            store(last, value, [0], width)
            store(self.copy, value, [line, (left + column) * lanes + start], width)
        outside = self.p.zero ^ (128 if signed else 0)
        for column in reversed(range(left)):
            value = named((load(last, [0], width) << eight) | splat(outside, width, "int32"))
            store(last, value, [0], width)
            store(self.copy, value, [line, column * lanes + start], width)

    def row(self, n: Expr, oh: Expr, line: Expr, block: Expr, lanes: int, valid: int) -> None:
        """An output row, whose first line of the copy is `line`."""
        most = 12 if self.isa.registers >= 32 else 8
        ow = self.p.conv.ow
        each = -(-ow // -(-ow // most))
        whole = ow // each

        def tile(first: Expr, columns: int) -> None:
            self._tile([n, oh], line, first, columns, block, lanes, valid)

        if whole == 1:
            tile(0, each)
        else:
            with loop(whole) as i:
                tile(i * each, each)
        if ow % each:
            tile(whole * each, ow % each)

    def _tile(self, at: list[Expr], line: Expr, first: Expr, columns: int, block: Expr, lanes: int, valid: int) -> None:
        c, dot = self.p.conv, self.p.dot
        acc = vectors(columns, lanes, "float32" if dot is None else "int32")
        low, high = row_range(at[1] * c.strides[0] - c.pads[0], c)
        if c.pads[0] or c.pads[2]:  # a window may lie in the padding altogether
            low = named(tirx.Min(low, tirx.IntImm("int64", c.kernel[0])))
            high = named(tirx.Max(high, low))
        start = splat(0.0, lanes)
        if dot is not None:
            start = load(self.b, [0, block], lanes)
            start = named(start + load(self.b, [1 + low, block], lanes) - load(self.b, [1 + high, block], lanes))
        for i in range(columns):
            store(acc[i], start, [0], lanes)
        with loop(high, start=low) as down:
            source = named(line + down * c.dilations[0])
            for step in range(self.p.steps):
                if dot is None:
                    w = named(load(self.w, [down, step, block], lanes))
                else:
                    w = named(load(self.w, [down, step, block * 4], lanes * 4))
                over = 4 * step if dot is not None else step * c.dilations[1]
                for i in range(columns):
                    value = load(self.copy, [source, ((first + i) * c.strides[1] + over) * lanes], lanes)
                    old = load(acc[i], [0], lanes)
                    if dot is None:
                        store(acc[i], old + value * w, [0], lanes)
                    else:
                        bytes_ = tirx.reinterpret(f"int8x{4 * lanes}", value)
                        store(acc[i], dot.add(old, bytes_, w, lanes), [0], lanes)
        for i in range(columns):
            for start, width in pieces(valid, lanes):
                total = load(acc[i], [start], width)
                if dot is None:
                    whole = tirx.Cast("int32" if width == 1 else f"int32x{width}", total)
                    total = whole + load(self.b, [0, block + start], width)
                place = [*at, first + i, block + start]
                store(self.y, self.finish(total, self.m, self.residual, place, width), place, width)


def applies(c: Conv) -> bool:
    """Whether `c` is depthwise, with sums that are exact in float32 too."""
    return c.group == c.ci == c.co > 1 and math.prod(c.kernel) <= EXACT
