"""Words that bring tensors to the scratchpad and back: what all operators share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt.targets.npu.isa import ACTIVATIONS, CONSTANTS, Fill, Load, Store, Unpack, Word
from graphopt.targets.npu.place import Border, Placement
from graphopt.targets.npu.program import Program, Tensor, View
from graphopt.targets.npu.tiling import align
from graphopt.targets.npu.weights import encode

Array = np.ndarray[Any, Any]
Span = tuple[int, int]  # start, size


@dataclasses.dataclass(frozen=True)
class Located:
    """A block in the scratchpad: its address, and the bytes from plane to plane and from row to row."""

    address: int
    plane: int
    row: int


class Slots:
    """The slots of one buffer and what lies in each; what was used least recently makes room."""

    def __init__(self, addresses: list[int]) -> None:
        self._held: list[tuple[int, object]] = [(address, None) for address in addresses]

    def take(self, key: object) -> tuple[int, bool]:
        """Address for `key`, and whether it lies there already."""
        hit = next((entry for entry in self._held if entry[1] == key), None)
        entry = hit or self._held[0]
        self._held.remove(entry)
        self._held.append((entry[0], key))
        return entry[0], hit is not None


class Emitter:
    """The words so far, the constants they load, and the slots of the operator at work."""

    def __init__(self, program: Program, placement: Placement, *, packs: bool = False) -> None:
        self.packs = packs  # whether the machine decodes weights
        self.words: list[Word] = []
        self.constants = bytearray()
        self._placement, self._outputs = placement, frozenset(program.outputs)
        self._ready: set[Tensor] = set()  # resident tensors whose border is filled
        self._offsets: dict[object, tuple[int, int]] = {}  # and bytes
        self._slots: dict[str, Slots] = {}

    def begin(self, at: int) -> None:
        """Operator `at` is next."""
        self._slots = {name: Slots(addresses) for name, addresses in self._placement.slots[at].items()}

    def slot(self, name: str, key: object) -> tuple[int, bool]:
        """A slot of a buffer, and whether `key` lies in it already."""
        return self._slots[name].take(key)

    def constant(self, name: str, key: object, data: Array) -> int:
        """`data` in the buffer `name`, loaded from the constants if it does not lie there; its address."""
        address, present = self.slot(name, key)
        if not present:
            if key not in self._offsets:
                self._offsets[key] = self._append(np.ascontiguousarray(data).reshape(-1).view(np.uint8))
            at, size = self._offsets[key]
            self.words.append(Load(CONSTANTS, at, address, 1, 1, size, size, size, 0, 0))
        return address

    def weights(self, key: object, data: Array, zero: int) -> int:
        """As `constant` for 8-bit weights, coded around `zero` where the machine decodes them and that is shorter."""
        address, present = self.slot("weights", key)
        if not present:
            raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            if key not in self._offsets:
                code = encode(raw, zero) if self.packs else None
                self._offsets[key] = self._append(raw if code is None else code)
            at, size = self._offsets[key]
            plain = Load(CONSTANTS, at, address, 1, 1, size, size, size, 0, 0)
            self.words.append(plain if size == raw.size else Unpack(at, address, size, raw.size))
        return address

    def _append(self, raw: Array) -> tuple[int, int]:
        """Where `raw` lies among the constants now, and its bytes."""
        at = len(self.constants)
        self.constants += raw.tobytes().ljust(align(raw.size), b"\0")
        return at, raw.size

    def read(self, name: str, view: View, n: int, c: Span, y: Span, x: Span, fill: int = 0) -> Located:
        """A block of channels, rows and columns; rows and columns may lie beyond the tensor, and are `fill` there."""
        if view.tensor in self._placement.near:
            return self._resident(view, n, c[0], y[0], x[0])
        address, present = self.slot(name, (name, n, c, y, x))
        block = Located(address, y[1] * x[1], x[1])
        if not present:
            self._load(view, n, c, y, x, block, fill)
        return block

    def result(self, view: View, n: int, c: Span, y: Span, x: Span) -> Located:
        """Where to write a block of `view`; `finish` must follow."""
        tensor = view.tensor
        if tensor in self._placement.near:
            if tensor not in self._ready:
                self._ready.add(tensor)
                self._fill_border(tensor)
            return self._resident(view, n, c[0], y[0], x[0])
        columns = x[1] * tensor.size
        return Located(self.slot("output", object())[0], y[1] * columns, columns)

    def finish(self, view: View, n: int, c: Span, y: Span, x: Span, block: Located) -> None:
        """Store a block that was written, if its tensor lies in DRAM too."""
        tensor, size = view.tensor, view.tensor.size
        if tensor not in self._placement.far:
            return
        _, channels, h, w = _layout(view)
        dram = self._placement.far[tensor] + (((n * channels + view.first + c[0]) * h + y[0]) * w + x[0]) * size
        self.words.append(
            Store(
                ACTIVATIONS,
                dram,
                block.address,
                c[1],
                y[1],
                x[1] * size,
                h * w * size,
                w * size,
                block.plane,
                block.row,
            )
        )

    def _resident(self, view: View, n: int, c: int, y: int, x: int) -> Located:
        _, channels, h, w = _layout(view)
        border = self._placement.borders.get(view.tensor, Border())
        row = w + border.left + border.right
        plane = row * (h + border.top + border.bottom)
        inside = (y + border.top) * row + x + border.left
        return Located(self._placement.near[view.tensor] + (n * channels + view.first + c) * plane + inside, plane, row)

    def _load(self, view: View, n: int, c: Span, y: Span, x: Span, block: Located, fill: int) -> None:
        """The part of a window that lies inside the tensor; the rest is filled."""
        _, channels, h, w = _layout(view)
        inside_y, inside_x = _inside(y, h), _inside(x, w)
        below, right = inside_y[0] + inside_y[1], inside_x[0] + inside_x[1]
        for rows, columns in (
            ((0, inside_y[0]), (0, x[1])),
            ((below, y[1] - below), (0, x[1])),
            (inside_y, (0, inside_x[0])),
            (inside_y, (right, x[1] - right)),
        ):
            if rows[1] and columns[1]:
                at = block.address + rows[0] * block.row + columns[0]
                self.words.append(Fill(fill, at, c[1], rows[1], columns[1], block.plane, block.row))
        if inside_y[1] and inside_x[1]:
            first = (n * channels + view.first + c[0]) * h + y[0] + inside_y[0]
            dram = self._placement.far[view.tensor] + first * w + x[0] + inside_x[0]
            pad = block.address + inside_y[0] * block.row + inside_x[0]
            shape = (c[1], inside_y[1], inside_x[1], h * w, w, block.plane, block.row)
            self.words.append(Load(ACTIVATIONS, dram, pad, *shape))

    def _fill_border(self, tensor: Tensor) -> None:
        border, (n, c, h, w) = self._placement.borders[tensor], tensor.shape
        rows, columns = h + border.top + border.bottom, w + border.left + border.right
        address = self._placement.near[tensor]
        for y, x in (
            ((0, border.top), (0, columns)),
            ((border.top + h, border.bottom), (0, columns)),
            ((border.top, h), (0, border.left)),
            ((border.top, h), (border.left + w, border.right)),
        ):
            if y[1] and x[1]:
                at = address + y[0] * columns + x[0]
                self.words.append(Fill(border.fill, at, n * c, y[1], x[1], rows * columns, columns))


def _layout(view: View) -> tuple[int, int, int, int]:
    """The dimensions that addresses are worked out in."""
    return view.shape if view.reshaped else view.tensor.shape


def spans(whole: int, size: int) -> Iterator[Span]:
    """Cut `whole` into (start, size) of at most `size`."""
    return ((start, min(size, whole - start)) for start in range(0, whole, size))


def _inside(span: Span, limit: int) -> Span:
    """The part of `span` within [0, limit), relative to the span's start."""
    start = min(max(0, -span[0]), span[1])
    return start, max(0, min(span[1], limit - span[0]) - start)
