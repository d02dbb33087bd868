"""How sparse weights and their inputs lie in memory (see `sparse`)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from graphopt.targets.llvm.kernels.window import Conv

Array = np.ndarray[Any, Any]
LINE = 16
"""Elements of a cache line."""


@dataclasses.dataclass(frozen=True)
class Lines:
    """The input of a convolution as one line of positions for each channel and phase of the stride.

    Phase (a, b) has the rows a, a + stride... and columns b, b + stride... of the input between zeros; only phases that
    a tap meets are there. Rows of a phase are `width` apart, and position p of a line is output p // width, p % width.
    """

    conv: Conv

    @functools.cached_property
    def phases(self) -> list[tuple[int, int]]:
        """The phases, in order of their lines."""
        return sorted({(self._tap(h, 0)[0], self._tap(w, 1)[0]) for h, w in self._taps})

    @property
    def width(self) -> int:
        """Positions of a row: those of the output, and as many as the last tap is further right."""
        return self.conv.ow + max(self._tap(w, 1)[1] for _, w in self._taps)

    @property
    def height(self) -> int:
        """Rows."""
        return self.conv.oh + max(self._tap(h, 0)[1] for h, _ in self._taps)

    @property
    def positions(self) -> int:
        """From the first position of the output to the last."""
        return (self.conv.oh - 1) * self.width + self.conv.ow

    @property
    def step(self) -> int:
        """From a line to the next: an odd number of cache lines, so that channels use different cache sets."""
        size = self.height * self.width
        return size if size <= LINE // 2 else (-(-size // LINE) | 1) * LINE

    @property
    def elements(self) -> int:
        """Of all lines."""
        return self.conv.ci * len(self.phases) * self.step

    @property
    def bordered(self) -> bool:
        """Whether there are zeros among the positions that count, or any that nothing is written to."""
        size = self.height * self.width
        return any((r[1], k[1]) != (self.height, self.width) for r, k in map(self.inside, self.phases)) or size < 1

    def inside(self, phase: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """First row and number of rows of the phase that are the input's, first column and number of columns."""
        c = self.conv
        rows = _inside(phase[0], c.strides[0], c.pads[0], c.h, self.height)
        return rows, _inside(phase[1], c.strides[1], c.pads[1], c.w, self.width)

    def places(self) -> Array:
        """[CI, KH, KW]: where in the lines the input of the output's first position lies, for each weight."""
        c = self.conv
        first = np.empty(c.kernel, np.int64)
        for h, w in self._taps:
            (a, down), (b, right) = self._tap(h, 0), self._tap(w, 1)
            first[h, w] = self.phases.index((a, b)) * self.step + down * self.width + right
        return np.arange(c.ci)[:, None, None] * (len(self.phases) * self.step) + first

    @property
    def _taps(self) -> list[tuple[int, int]]:
        return [(h, w) for h in range(self.conv.kernel[0]) for w in range(self.conv.kernel[1])]

    def _tap(self, index: int, axis: int) -> tuple[int, int]:
        """The phase that a tap meets, and how far along it."""
        further, phase = divmod(index * self.conv.dilations[axis], self.conv.strides[axis])
        return phase, further


def _inside(phase: int, stride: int, before: int, size: int, count: int) -> tuple[int, int]:
    """First position of a phase that lies in an axis of `size` elements, and how many of `count` do."""
    first = max(0, -((phase - before) // stride))
    last = min(count - 1, (before + size - 1 - phase) // stride)
    return first, last - first + 1


@dataclasses.dataclass(frozen=True)
class Pattern:
    """The shape of a sparse kernel. `conv` is without groups; a matrix product is one with a kernel of one tap.

    width, vectors: positions of a vector, and vectors of a tile. outputs: channels that share their inputs.
    unroll: weights at a time. inner: input channels of a block. stored: weights of one output channel, `outputs` of
    which are stored side by side, padded with zeros to a multiple of `unroll` for each block and group of channels.
    chunk: output channels of a unit of work, a multiple of `outputs`. Within a chunk and block the groups come in order
    of how many weights they have, so that the processor foresees where the loop over them ends.
    """

    conv: Conv
    width: int
    vectors: int
    outputs: int
    unroll: int
    inner: int
    stored: int
    chunk: int

    @property
    def lines(self) -> Lines:
        """Where inputs lie."""
        return Lines(self.conv)

    @property
    def tile(self) -> int:
        """Positions of a tile."""
        return self.width * self.vectors

    @property
    def tiles(self) -> int:
        """Tiles of a sample."""
        return -(-self.lines.positions // self.tile)

    @property
    def blocks(self) -> int:
        """Blocks of input channels."""
        return -(-self.conv.ci // self.inner)

    @property
    def groups(self) -> int:
        """Groups of output channels."""
        return -(-self.conv.co // self.outputs)

    @property
    def rows(self) -> int:
        """Output channels, those included that fill the last group."""
        return self.groups * self.outputs

    @property
    def chunks(self) -> int:
        """Units of work for each tile."""
        return -(-self.conv.co // self.chunk)

    @property
    def starts(self) -> int:
        """Length of the table of where each block's and group's weights begin, in units of `unroll`."""
        return self.blocks * self.groups + 1

    def pack(self, weight: Array) -> tuple[Array, Array, Array, Array]:
        """[CO, CI, KH, KW] -> values [stored * outputs], places [stored], starts, targets, as the kernel reads them.

        `targets` [blocks, groups]: which group of output channels, counted from its chunk's first, comes when.
        """
        groups, used = grouped(weight, self.outputs)
        g, ci, h, w = np.nonzero(used)
        block = ci // self.inner
        counts = np.zeros((self.blocks, self.groups), np.int64)
        np.add.at(counts, (block, g), 1)
        chunk = np.arange(self.groups) // (self.chunk // self.outputs)
        turns = np.stack([np.lexsort((row, chunk)) for row in counts])  # turn -> group
        when = np.argsort(turns, axis=1)  # group -> turn
        counts = np.take_along_axis(counts, turns, 1).reshape(-1)
        entry = block * self.groups + when[block, g]
        order = np.lexsort((w, h, ci, entry))
        g, ci, h, w, entry = (a[order] for a in (g, ci, h, w, entry))
        padded = -(-counts // self.unroll) * self.unroll
        starts, begins = np.concatenate([[0], np.cumsum(padded)]), np.concatenate([[0], np.cumsum(counts)])
        to = starts[:-1][entry] + np.arange(len(g)) - begins[:-1][entry]
        places = np.zeros(self.stored, np.int32)
        values = np.zeros((self.stored, self.outputs), np.float32)
        places[to] = self.lines.places()[ci, h, w]
        values[to] = groups[g, :, ci, h, w]
        targets = turns - chunk * (self.chunk // self.outputs)
        return (
            values.reshape(-1),
            places,
            (starts // self.unroll).astype(np.int32),
            targets.astype(np.int32).reshape(-1),
        )


def grouped(weight: Array, outputs: int) -> tuple[Array, Array]:
    """The weights as [groups, outputs, CI, KH, KW], and which [groups, CI, KH, KW] are not all zero."""
    missing = -len(weight) % outputs
    whole = weight if not missing else np.concatenate([weight, np.zeros((missing, *weight.shape[1:]), weight.dtype)])
    groups = whole.reshape(-1, outputs, *weight.shape[1:])
    return groups, (groups != 0).any(axis=1)


def stored(weight: Array, outputs: int, unroll: int, inner: int) -> int:
    """How many weights of an output channel a kernel stores: those not zero, and zeros to fill up."""
    used = grouped(weight, outputs)[1].sum(axis=(2, 3))
    starts = np.arange(0, used.shape[1], inner)
    counts = np.add.reduceat(used, starts, axis=1)
    return int((-(-counts // unroll) * unroll).sum())
