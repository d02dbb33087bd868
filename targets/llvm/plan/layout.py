"""Channels-last twins: for a value in ONNX's order (N, C, H, W) the value that holds the same as (N, H, W, C).

Kernels tile along W. So what is long in one direction only lies along W: (N, C, L) and (N, C, L, 1) both have the twin
(N, 1, L, C).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, derive, fresh_name
from graphopt.targets.llvm.kernels.grid import Grid
from graphopt.targets.lowering.support import EXTERNAL

Dim = int | ir.SymbolicDim
KINDS = (ir.DataType.FLOAT, ir.DataType.UINT8)
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclasses.dataclass(frozen=True)
class Part:
    """Channels [start, start + count) of a twin at positions that the place p of the result, down and across, gives.

    Position ``p // scale * step + offset``: `scale` repeats positions, `step` and `offset` leave some out. `grid`: what
    the bytes of the twin stand for, where the part is dequantized.
    """

    twin: ir.Value
    start: int
    count: int
    scale: tuple[int, int] = (1, 1)
    step: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)
    grid: Grid | None = None


class Twins:
    """The twins known so far. `insert` puts a new node before the one that the walk is at, to stand for `replaced`.

    A concatenation or slice along the channels, or a repetition of positions, is kept as the parts it consists of;
    `gather(value, parts)` makes the twin of it when somebody needs it in one piece.
    """

    def __init__(self, graph: ir.Graph, gather: Callable[[ir.Value, Sequence[Part]], ir.Value]) -> None:
        self.graph = graph
        self.at: ir.Node | None = None
        self.replaced: tuple[ir.Node, ...] = ()
        self.newest: ir.Node | None = None  # the last call of a kernel
        self._gather = gather
        self._last: dict[ir.Value, ir.Value] = {}
        self._parts: dict[ir.Value, tuple[Part, ...]] = {}
        self._only: set[ir.Value] = set()

    def insert(self, node: ir.Node) -> None:
        """Put `node` before the node the walk is at, or at the end."""
        derive(node, self.replaced)
        if (node.domain, node.op_type) == EXTERNAL:
            self.newest = node
        if self.at is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.at, node)

    def known(self, value: ir.Value | None) -> bool:
        """Whether `value` has a twin."""
        return value in self._last or value in self._parts

    def set(self, value: ir.Value, twin: ir.Value) -> None:
        """`twin` is what the graph computes from now on; `value` is made from it when somebody asks."""
        self._last[value] = twin
        self._only.add(value)

    def set_parts(self, value: ir.Value, parts: Sequence[Part]) -> None:
        """As `set`, for a twin that consists of these channels one after the other."""
        self._parts[value] = tuple(parts)
        self._only.add(value)

    def parts(self, value: ir.Value) -> tuple[Part, ...]:
        """What the twin of `value` consists of; itself if it is in one piece."""
        value = self._current(value)
        if value in self._last or value not in self._parts:
            shape = image(value)
            assert shape is not None
            return (Part(self.last(value), 0, shape.c),)
        return self._parts[value]

    def last(self, value: ir.Value) -> ir.Value:
        """The twin of `value`, by a Transpose if there is none yet."""
        value = self._current(value)
        if value not in self._last:
            if value in self._parts:
                self._last[value] = self._gather(value, self._parts[value])
            else:
                self._last[value] = self._turn(value)
        return self._last[value]

    def first(self, value: ir.Value) -> ir.Value:
        """What holds `value` in ONNX's order; if only its twin is computed, a new value takes its place for all."""
        if value not in self._only:
            return current(value)
        twin, shape = self.last(value), image(value)
        self._only.remove(value)
        assert shape is not None
        assert value.shape is not None
        turned = twin
        if shape.c > 1 and shape.h * shape.w > 1:
            turned = self.new("Transpose", [twin], shape.first, {"perm": list(TO_FIRST)}, value)
        turned = self.shaped(turned, list(value.shape), value)
        replace(value, turned)
        self._last[turned] = twin
        return turned

    def _current(self, value: ir.Value) -> ir.Value:
        return value if self.known(value) else current(value)

    def _turn(self, value: ir.Value) -> ir.Value:
        shape = image(value)
        assert shape is not None
        if shape.c == 1 or shape.h * shape.w == 1:
            return self.shaped(value, shape.last, value)
        source = _before_turning(value)
        if source is not None:
            return self.shaped(self.first(source), shape.last, value)
        value = self.shaped(value, shape.first, value)
        return self.new("Transpose", [value], shape.last, {"perm": list(TO_LAST)}, value)

    def shaped(self, value: ir.Value, dims: Sequence[Dim], like: ir.Value) -> ir.Value:
        """`value` with other dimensions after the batch, by a Reshape where they differ."""
        if value.shape is not None and list(value.shape) == list(dims):
            return value
        target = add_constant(self.graph, f"{like.name}_shape", np.array([0, *dims[1:]], np.int64))
        return self.new("Reshape", [value, target], dims, {}, like)

    def new(
        self,
        op: str,
        inputs: list[ir.Value],
        dims: Sequence[Dim],
        attributes: dict[str, int | list[int]],
        like: ir.Value,
    ) -> ir.Value:
        """The output, of dimensions `dims`, of a new node put here; named after `like`."""
        output = ir.val(fresh_name(self.graph, f"{like.name}_turned"), like.dtype, ir.Shape(dims))
        node = ir.node(op, inputs, attributes, outputs=[output], name=fresh_name(self.graph, f"{like.name}_turn"))
        self.insert(node)
        return output


def _before_turning(value: ir.Value) -> ir.Value | None:
    """x where `value` is a Transpose of it that its twin would undo; axes of one element lie anywhere."""
    node = value.producer()
    if node is None or node.op_type != "Transpose" or node.domain != "" or value.shape is None:
        return None
    rank = len(value.shape)
    perm = list(node.attributes.get_ints("perm", list(reversed(range(rank)))))
    axes = [perm[axis] for axis in (0, *range(2, rank), 1) if value.shape[axis] != 1]
    return node.inputs[0] if perm[0] == 0 and axes == sorted(axes) else None


SUCCESSOR = "graphopt.successor"


def replace(old: ir.Value, new: ir.Value) -> None:
    """Have `new` stand for `old` everywhere; as a graph output it takes the name too. See `current`."""
    old.meta[SUCCESSOR] = new
    if old.is_graph_output():
        old.name, new.name = new.name, old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def current(value: ir.Value) -> ir.Value:
    """What stands for `value` by now: who noted it before a kernel took its place would have it computed once more."""
    while (successor := value.meta.get(SUCCESSOR)) is not None:
        value = successor
    return value


class Image(NamedTuple):
    """The shape of a value as kernels see it; all but the batch are numbers."""

    n: Dim
    c: int
    h: int
    w: int

    @property
    def last(self) -> list[Dim]:
        """(N, H, W, C)."""
        return [self.n, self.h, self.w, self.c]

    @property
    def first(self) -> list[Dim]:
        """(N, C, H, W)."""
        return [self.n, self.c, self.h, self.w]

    @property
    def batch(self) -> int | str:
        """The batch as the kernels take it: a number, or the name of a symbol."""
        return self.n if isinstance(self.n, int) else "n"


def image(value: ir.Value | None) -> Image | None:
    """The shape of a float32 or uint8 value (N, C, H, W) or (N, C, L); None unless all but the batch is known."""
    if value is None or not value.shape or value.dtype not in KINDS:
        return None
    n, *known = value.shape
    sizes = [d for d in known if isinstance(d, int) and d > 0]
    if len(sizes) != len(known) or n == 0:
        return None
    match sizes:
        case [c, length] | [c, length, 1]:
            return Image(n, c, 1, length)
        case [c, h, w]:
            return Image(n, c, h, w)
        case _:
            return None


def is_turned(value: ir.Value) -> bool:
    """Whether rows of `value` (N, C, H, 1) are columns of its twin."""
    return value.shape is not None and len(value.shape) == 4 and value.shape[3] == 1 and value.shape[2] != 1


def constant_to_last(array: np.ndarray, like: ir.Value) -> np.ndarray:
    """A constant that broadcasts against `like`, as (N, H, W, C) that broadcasts against its twin."""
    assert like.shape is not None
    rank = len(like.shape)
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if rank == 3:
        full = full[:, :, None, :]
    elif is_turned(like):
        full = full.transpose(0, 1, 3, 2)
    return full.transpose(0, 2, 3, 1)
