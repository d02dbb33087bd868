"""The recurrence of LSTM (S. Hochreiter, J. Schmidhuber, 1997), GRU (K. Cho et al., 2014) and simple RNN layers.

What the input contributes to the gates, biases included, is one matrix product over all steps and comes in as `p`.
A step is left with ``h R'``: a tile holds all gates of one vector of hidden units for a few rows of the batch, so that
the gates' functions and the new state follow while the sums are in registers. Columns of `p` and of the packed weights
past the hidden size are zero, and so is the state there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.emit import (
    Expr,
    Function,
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
)  # fmt: skip
from graphopt.targets.llvm.kernels.vector_math import sigmoid, tanh

Kind = Literal["lstm", "gru", "gru-reset-after", "tanh", "relu"]
GATES: dict[str, int] = {"lstm": 4, "gru": 3, "gru-reset-after": 3, "tanh": 1, "relu": 1}
Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Recurrent:
    """Sizes: steps, batch, hidden units; which directions run backwards; whether LSTM cells are an output too."""

    kind: Kind
    steps: int | str
    n: int | str
    hidden: int
    backwards: tuple[bool, ...]
    cells: bool = False

    @property
    def gates(self) -> int:
        """Gates of a unit."""
        return GATES[self.kind]

    def padded(self, lanes: int) -> int:
        """Hidden units in whole vectors."""
        return -(-self.hidden // lanes) * lanes

    @property
    def output(self) -> list[int | str]:
        """[steps, directions, batch, hidden]; with cells [steps, directions, 2, batch, hidden]."""
        d = len(self.backwards)
        return [self.steps, d, *([2] if self.cells else []), self.n, self.hidden]


def pack(weight: Array, gates: int, lanes: int) -> Array:
    """[D, gates * H, H] -> [D, blocks, gates, H, lanes]."""
    d, _, h = weight.shape
    blocks = -(-h // lanes)
    padded = np.zeros((d, gates, blocks * lanes, h), np.float32)
    padded[:, :, :h] = weight.reshape(d, gates, h, h)
    return np.ascontiguousarray(padded.reshape(d, gates, blocks, lanes, h).transpose(0, 2, 1, 4, 3))


def pad(array: Array, gates: int, lanes: int) -> Array:
    """[D, gates * H, ...] -> [D, gates * padded H, ...], zeros past each gate's H."""
    d, h = array.shape[0], array.shape[1] // gates
    padded = np.zeros((d, gates, -(-h // lanes) * lanes, *array.shape[2:]), np.float32)
    padded[:, :, :h] = array.reshape(d, gates, h, *array.shape[2:])
    return padded.reshape(d, -1, *array.shape[2:])


def make(p: Recurrent, isa: Isa, parallel: bool, name: str = "recurrent") -> tirx.PrimFunc:
    """``f(p, weights, bias, h0, c0, y)``: p [steps, n, D * gates * padded], h0 and c0 [D, n, hidden].

    `bias` [D, padded] goes with the new state's product and counts for "gru-reset-after", `c0` for "lstm".
    """
    with function(name) as (f, made):
        layer = _Layer(f, p, isa)
        with loop(len(p.backwards), parallel=parallel) as d:
            layer.direction(d)
    return made[0]


@dataclasses.dataclass(frozen=True)
class _At:
    """Direction, step, row of the batch and block of hidden units."""

    d: Expr
    t: Expr
    n: Expr
    block: Expr


Finish = Callable[[_At, list[Expr]], None]


class _Layer:
    def __init__(self, f: Function, p: Recurrent, isa: Isa) -> None:
        self.p, self.isa, self.n, self.steps = p, isa, f.dim(p.n), f.dim(p.steps)
        self.padded, d = p.padded(isa.lanes), len(p.backwards)
        self.blocks = self.padded // isa.lanes
        self.x = f.argument("p", [p.steps, p.n, d * p.gates * self.padded])
        self.w = f.argument("w", [d, self.blocks, p.gates, p.hidden, isa.lanes])
        self.bias = f.argument("b", [d, self.padded])
        self.h0, self.c0 = (f.argument(name, [d, p.n, p.hidden]) for name in ("h0", "c0"))
        y = f.argument("y", p.output)
        self.y = f.view(y, [self.steps, i64(d), i64(2 if p.cells else 1), self.n, i64(p.hidden)])

    def direction(self, d: Expr) -> None:
        """All steps of direction `d`."""
        p = self.p
        self.h, self.c, self.z, self.rh, self.out = (scratch([self.n, self.padded]) for _ in range(5))
        with loop(self.n) as n:
            for start, target in ((self.h0, self.h), (self.c0, self.c)):
                self._copy(start, [d, n], target, [n])
                for at in range(p.hidden, self.padded):
                    store(target, splat(0.0, 1), [n, at], 1)
        with loop(self.steps) as step:
            t = step
            if any(p.backwards):
                t = named(step + (1 if all(p.backwards) else d) * (self.steps - 1 - step * 2))
            match p.kind:
                case "lstm":
                    self._pass(d, t, self.h, (0, 1, 2, 3), (), self._lstm)
                case "gru":
                    self._pass(d, t, self.h, (0, 1), (), self._reset)
                    self._pass(d, t, self.rh, (2,), (), self._update)
                case "gru-reset-after":
                    self._pass(d, t, self.h, (0, 1, 2), (2,), self._reset_after)
                case _:
                    self._pass(d, t, self.h, (0,), (), self._plain)
            with loop(self.n) as n:
                self._copy(self.out, [n], self.h, [n])
                self._copy(self.out, [n], self.y, [t, d, 0, n])
                if p.cells:
                    self._copy(self.c, [n], self.y, [t, d, 1, n])

    def _copy(self, source: Any, place: list[Expr], target: Any, to: list[Expr]) -> None:
        def move(at: Expr, width: int) -> None:
            store(target, load(source, [*place, at], width), [*to, at], width)

        runs(self.p.hidden, self.isa.lanes, move)

    def _pass(
        self, d: Expr, t: Expr, source: Any, gates: tuple[int, ...], biased: tuple[int, ...], finish: Finish
    ) -> None:
        """The sums of `gates`, of which those `biased` start from the bias alone, then what `finish` makes of them."""
        count, room = len(gates), self.isa.registers - 1
        known = self.p.n if isinstance(self.p.n, int) else 1
        rows = min(known, max(1, (room - count) // count))
        wide = 2 if rows == 1 and self.blocks > 1 and 4 * count <= room else 1

        def tiles(block: Expr, blocks: int) -> None:
            if isinstance(self.p.n, str):
                with loop(self.n) as n:
                    self._tile(_At(d, t, n, block), source, gates, biased, finish, tile.Shape(1, blocks * count))
                return
            with loop(known // rows) as r:
                self._tile(_At(d, t, r * rows, block), source, gates, biased, finish, tile.Shape(rows, blocks * count))
            if rest := known % rows:
                place = _At(d, t, i64(known - rest), block)
                self._tile(place, source, gates, biased, finish, tile.Shape(rest, blocks * count))

        with loop(self.blocks // wide) as b:
            tiles(b * wide, wide)
        if self.blocks % wide:
            tiles(i64(self.blocks - 1), 1)

    def _tile(
        self, at: _At, source: Any, gates: tuple[int, ...], biased: tuple[int, ...], finish: Finish, shape: tile.Shape
    ) -> None:
        lanes, count = self.isa.lanes, len(gates)

        def block(j: int) -> Expr:
            return at.block + j // count

        def start(j: int) -> Expr:
            own = gates[j % count] in biased
            return load(self.bias, [at.d, block(j) * lanes], lanes) if own else splat(0.0, lanes)

        acc = tile.Accumulators(shape, self.isa, start)
        acc.read(
            self.x,
            [0 if gates[j % count] in biased else lanes for j in range(shape.cols)],
            lambda i, j, offset: self._given(at, i, gates[j % count], block(j), offset),
        )
        with loop(self.p.hidden) as k:
            acc.step(
                range(shape.rows),
                lambda i: source[at.n + i, k],
                lambda j: load(self.w, [at.d, block(j), gates[j % count], k, 0], lanes),
            )
        for i in range(shape.rows):
            for first in range(0, shape.cols, count):
                sums = [acc.vector(i, first + g) for g in range(count)]
                finish(dataclasses.replace(at, n=at.n + i, block=block(first)), sums)

    def _given(self, at: _At, row: int, gate: int, block: Expr, offset: int = 0) -> list[Expr]:
        """Where the input's contribution lies."""
        return [at.t, at.n + row, (at.d * self.p.gates + gate) * self.padded + block * self.isa.lanes + offset]

    def _lstm(self, at: _At, sums: list[Expr]) -> None:
        lanes, place = self.isa.lanes, [at.n, at.block * self.isa.lanes]
        i, o, f = (named(sigmoid(s, lanes)) for s in sums[:3])
        cell = named(f * load(self.c, place, lanes) + i * tanh(sums[3], lanes))
        store(self.c, cell, place, lanes)
        self._write(at, o * tanh(cell, lanes))

    def _reset(self, at: _At, sums: list[Expr]) -> None:
        lanes, place = self.isa.lanes, [at.n, at.block * self.isa.lanes]
        store(self.z, sigmoid(sums[0], lanes), place, lanes)
        store(self.rh, sigmoid(sums[1], lanes) * load(self.h, place, lanes), place, lanes)

    def _update(self, at: _At, sums: list[Expr]) -> None:
        place = [at.n, at.block * self.isa.lanes]
        self._mix(at, load(self.z, place, self.isa.lanes), tanh(sums[0], self.isa.lanes))

    def _reset_after(self, at: _At, sums: list[Expr]) -> None:
        lanes = self.isa.lanes
        z, r = (named(sigmoid(s, lanes)) for s in sums[:2])
        given = load(self.x, self._given(at, 0, 2, at.block), lanes)
        self._mix(at, z, tanh(given + r * sums[2], lanes))

    def _mix(self, at: _At, z: Expr, new: Expr) -> None:
        new, lanes = named(new), self.isa.lanes
        self._write(at, new + z * (load(self.h, [at.n, at.block * lanes], lanes) - new))

    def _plain(self, at: _At, sums: list[Expr]) -> None:
        lanes = self.isa.lanes
        self._write(at, tirx.Max(sums[0], splat(0.0, lanes)) if self.p.kind == "relu" else tanh(sums[0], lanes))

    def _write(self, at: _At, value: Expr) -> None:
        """The new state becomes `h` when the step is done: other tiles still read the old one."""
        lanes = self.isa.lanes
        store(self.out, value, [at.n, at.block * lanes], lanes)
