"""Winograd convolution along a line: F(m, r) takes m + r - 1 multiplications for m outputs of r taps.

    y = A^T [ (G g) * (B^T d) ]

(S. Winograd, "Arithmetic Complexity of Computations", 1980), d the m + r - 1 inputs that m outputs see. Kernels longer
than r are cut into blocks of r = m taps: block b of output tile t sees what block 0 of tile t + b sees, so that each
tile of the input is transformed once, and the sum over blocks and channels is one product along the line for each of
the m + r - 1 points ::

    M[point, t] = V[point, t : t + blocks].reshape(-1) @ U[point]

Panels of output channels go one after the other through all points and the output's transform, so that their products
stay in the L2 cache. G g is computed when the model is compiled. For stride 1 without dilation. 5 taps by F(4, 5) are
2 multiplications an output, 64 taps by 16 blocks of F(4, 4) are 28.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.packed import Steps, multiply, pad, reshape, run, transpose
from graphopt.targets.llvm.kernels import line, tile
from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Isa,
    function,
    load,
    loop,
    runs,
    scratch,
    store,
    when,
)
from graphopt.targets.llvm.kernels.epilogue import Epilogue
from graphopt.targets.llvm.kernels.window import Conv
from graphopt.targets.llvm.kernels.winograd import combine, kept, odd_lines

M = 4
"""Outputs of a tile."""
POINTS = tuple(map(Fraction, ("0", "1", "-1", "2", "-2", "1/2", "-1/2")))
"""Where polynomials are evaluated, beside infinity: few and small, so that little is lost to rounding."""
WHOLE = 5
"""Longest kernel that is not cut."""


@dataclasses.dataclass(frozen=True)
class Scheme:
    """F(m, r) for a kernel of `blocks` times r taps: the matrices of the formula."""

    r: int
    blocks: int
    bt: tuple[tuple[float, ...], ...]
    g: tuple[tuple[float, ...], ...]
    at: tuple[tuple[float, ...], ...]

    @property
    def a(self) -> int:
        """Points, and inputs of a tile: ``m + r - 1``."""
        return M + self.r - 1


@functools.cache
def scheme(taps: int) -> Scheme:
    """The scheme for a kernel of so many taps.

    Toom and Cook's construction, transposed: with p_j the product over all points but the j-th of (x - point), row j of
    B^T has the coefficients of p_j, row j of G the powers of the point over p_j(point), column j of A^T its powers.
    """
    r = taps if taps <= WHOLE else M
    points = POINTS[: M + r - 2]
    bt, g, at = list[list[Fraction]](), list[list[Fraction]](), list[list[Fraction]]()
    for point in points:
        others = _product([other for other in points if other != point])
        value = sum((c * point**power for power, c in enumerate(others)), Fraction())
        bt.append([*others, Fraction()])
        g.append([point**k / value for k in range(r)])
        at.append([point**i for i in range(M)])
    bt.append(_product(points))
    g.append([Fraction(k == r - 1) for k in range(r)])
    at.append([Fraction(i == M - 1) for i in range(M)])
    return Scheme(r, -(-taps // r), _floats(bt), _floats(g), _floats([list(row) for row in zip(*at, strict=True)]))


def _product(roots: list[Fraction] | tuple[Fraction, ...]) -> list[Fraction]:
    """The coefficients of the product of all (x - root), from x^0 on."""
    found = [Fraction(1)]
    for root in roots:
        found = [a - root * b for a, b in zip([Fraction(), *found], [*found, Fraction()], strict=True)]
    return found


def _floats(rows: list[list[Fraction]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in rows)


def applies(c: Conv, isa: Isa) -> bool:
    """A line of several tiles, stride 1, one group, channels that fill vectors."""
    along = c.h == c.oh == c.kernel[0] == 1 and c.strides[1] == c.dilations[1] == c.group == 1
    return along and c.kernel[1] >= 3 and c.ow >= 2 * M and min(c.ci, c.co) >= isa.lanes


def tiles(c: Conv) -> int:
    """Tiles of an output line."""
    return -(-c.ow // M)


def pack(weight: np.ndarray[Any, Any], lanes: int) -> np.ndarray[Any, Any]:
    """[CO, CI, 1, KW] -> G g as [points, CO / lanes, blocks * CI, lanes], channels past CO zero; made in float64."""
    return run(weight, packing(weight.shape, lanes))


def packing(shape: Sequence[int], lanes: int) -> Steps:
    """The steps of `pack`."""
    co, ci, _, taps = shape
    s, blocks = scheme(taps), -(-co // lanes)
    return (
        pad(3, s.blocks * s.r), reshape(co, ci, s.blocks, s.r), multiply(3, s.g), transpose(3, 2, 1, 0),
        pad(3, blocks * lanes), reshape(s.a, s.blocks * ci, blocks, lanes), transpose(0, 2, 1, 3),
    )  # fmt: skip


def make(
    c: Conv, isa: Isa, epilogue: Epilogue, parallel: bool, name: str = "winograd_line", shape: tile.Shape | None = None
) -> tirx.PrimFunc:
    """``f(x, weights, bias[, residual], y)`` for packed weights and bias; x [n, 1, w, ci], y [n, 1, ow, co].

    `shape`: a tile in place of the one chosen here.
    """
    s, lanes = scheme(c.kernel[1]), isa.lanes
    blocks, count = -(-c.co // lanes), tiles(c) + s.blocks - 1  # vectors of output channels; tiles of the input
    shape = shape or tile.choose(tiles(c), blocks, isa)
    right = M * (count - 1) + s.a - c.pads[1] - c.w
    with function(name) as (f, made):
        x = f.argument("x", [c.n, 1, c.w, c.ci])
        w = f.argument("w", [s.a, blocks, s.blocks * c.ci, lanes])
        b = f.argument("b", [blocks * lanes])
        residual = f.argument("r", [c.n, 1, c.ow, c.co]) if epilogue.residual else None
        y = f.argument("y", [c.n, 1, c.ow, c.co])
        x, y = f.matrix(x, [c.n, 1, c.w * c.ci]), f.matrix(y, [c.n, 1, c.ow * c.co])
        residual = None if residual is None else f.matrix(residual, [c.n, 1, c.ow * c.co])
        padded = scratch([1, (c.pads[1] + c.w + right) * c.ci])
        v = scratch([s.a, odd_lines(count * c.ci)])
        with loop(f.dim(c.n)) as n:
            line.pad(dataclasses.replace(c, pads=(0, c.pads[1], 0, right)), isa, x, padded, n)
            steps = _Line(s, c, isa, epilogue, padded, w, b, residual, y, v, n)
            with loop(count, parallel=parallel) as t:
                steps.transform_input(t)
            whole = c.co // lanes // shape.cols  # panels of which every channel exists
            if whole:
                with loop(whole, parallel=parallel) as panel:
                    steps.panel(panel * shape.cols, shape, shape.cols * lanes)
            for first in range(whole * shape.cols, blocks, shape.cols):
                last = tile.Shape(shape.rows, min(shape.cols, blocks - first))
                steps.panel(first, last, min(c.co - first * lanes, last.cols * lanes))
    return made[0]


@dataclasses.dataclass(frozen=True)
class _Line:
    """The steps for line `n`, which lies between zeros in `x`; `v` holds the transformed input."""

    scheme: Scheme
    c: Conv
    isa: Isa
    epilogue: Epilogue
    x: Any
    w: Any
    b: Any
    residual: Any
    y: Any
    v: Any
    n: Expr

    def transform_input(self, t: Expr) -> None:
        """``v[:, t] = B^T d`` for tile t."""
        ci, s = self.c.ci, self.scheme

        def run(k: Expr, lanes: int) -> None:
            values = kept([load(self.x, [0, (t * M + i) * ci + k], lanes) for i in range(s.a)], lanes)
            for point in range(s.a):
                store(self.v, combine(s.bt[point], values, lanes), [point, t * ci + k], lanes)

        runs(ci, self.isa.lanes, run)

    def panel(self, first: Expr, shape: tile.Shape, channels: int) -> None:
        """`channels` output channels from vector `first` on: all points, then the output's transform."""
        width, count = shape.cols * self.isa.lanes, tiles(self.c)
        m = scratch([self.scheme.a, odd_lines(count * width)])
        with loop(self.scheme.a) as point:
            self._multiply(point, first, shape, m)
        with loop(count) as t:
            runs(channels, self.isa.lanes, lambda k, lanes: self._transform_output(t, first, width, k, lanes, m))

    def _multiply(self, point: Expr, first: Expr, shape: tile.Shape, m: Any) -> None:
        """``m[point] = v[point] @ w[point]``, in blocks of the inner dimension whose weights stay in the L2 cache."""
        inner, count = self.scheme.blocks * self.c.ci, tiles(self.c)
        step = line.block(inner)
        full, rest = divmod(count, shape.rows)

        def rows(start: Expr, begins: bool) -> None:
            with loop(full) as t:
                self._product(point, t * shape.rows, first, shape, (start, step), m, begins)
            if rest:
                last = tile.Shape(rest, shape.cols)
                self._product(point, full * shape.rows, first, last, (start, step), m, begins)

        rows(0, True)
        if inner > step:
            with loop(inner // step, start=1) as i:
                rows(i * step, False)

    def _product(
        self,
        point: Expr,
        row: Expr,
        first: Expr,
        shape: tile.Shape,
        inner: tuple[Expr, int],
        m: Any,
        begins: bool,
    ) -> None:
        lanes, ci, (start, step) = self.isa.lanes, self.c.ci, inner
        acc = tile.Accumulators(shape, self.isa)

        def place(i: int, j: int, offset: int) -> list[Expr]:
            return [point, ((row + i) * shape.cols + j) * lanes + offset]

        if not begins:
            acc.read(m, [lanes] * shape.cols, place)
        with loop(step) as i:
            acc.step(
                range(shape.rows),
                lambda r: self.v[point, (row + r) * ci + start + i],
                lambda j: load(self.w, [point, first + j, start + i, 0], lanes),
            )
        acc.write([lanes] * shape.cols, place, lambda value, _place, _width: value, m)

    def _transform_output(self, t: Expr, first: Expr, width: int, k: Expr, lanes: int, m: Any) -> None:
        """``A^T m[:, t]``, bias and epilogue, stored where the line has such positions."""
        c, s, channel = self.c, self.scheme, first * self.isa.lanes + k
        values = kept([load(m, [point, t * width + k], lanes) for point in range(s.a)], lanes)
        for i in range(M):
            position = t * M + i
            exists = when(position < c.ow) if i > (c.ow - 1) % M else contextlib.nullcontext()
            with exists:
                place = [self.n, position * c.co + channel]
                value = combine(s.at[i], values, lanes) + load(self.b, [channel], lanes)
                store(self.y, self.epilogue.finish(self.residual, value, place, lanes), place, lanes)
