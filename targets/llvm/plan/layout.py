"""Channels-last twins: for a value in ONNX's order (N, C, H, W) the value that holds the same as (N, H, W, C)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, fresh_name

Dim = int | ir.SymbolicDim
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class Twins:
    """The twins known so far. `insert` puts a new node before the one that the walk is at."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.at: ir.Node | None = None
        self._last: dict[ir.Value, ir.Value] = {}
        self._only: set[ir.Value] = set()
        self._first: dict[ir.Value, ir.Value] = {}

    def insert(self, node: ir.Node) -> None:
        """Put `node` before the node the walk is at, or at the end."""
        if self.at is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.at, node)

    def known(self, value: ir.Value | None) -> bool:
        """Whether `value` has a twin."""
        return value in self._last

    def set(self, value: ir.Value, twin: ir.Value) -> None:
        """`twin` is what the graph computes from now on; `value` is made from it when somebody asks."""
        self._last[value] = twin
        self._only.add(value)

    def last(self, value: ir.Value) -> ir.Value:
        """The twin of `value`, by a Transpose if there is none yet."""
        if value not in self._last:
            self._last[value] = self._turn(value)
        return self._last[value]

    def first(self, value: ir.Value) -> ir.Value:
        """What holds `value` in ONNX's order; if only its twin is computed, a new value takes its place for all."""
        if value not in self._only:
            return self._first.get(value, value)
        self._only.remove(value)
        twin = self._last[value]
        shape = image(value)
        if shape is not None and shape.h == shape.w == 1:
            target = add_constant(self.graph, f"{value.name}_shape", np.array([0, shape.c, 1, 1], np.int64))
            turned = self._new("Reshape", [twin, target], {}, value)
        else:
            turned = self._new("Transpose", [twin], {"perm": list(TO_FIRST)}, value)
        replace(value, turned)
        self._last[turned], self._first[value] = twin, turned
        return turned

    def _turn(self, value: ir.Value) -> ir.Value:
        shape = image(value)
        assert shape is not None
        output = ir.val(fresh_name(self.graph, f"{value.name}_last"), value.dtype, ir.Shape(shape.last))
        name = fresh_name(self.graph, f"{value.name}_to_last")
        node = ir.node("Transpose", [value], {"perm": list(TO_LAST)}, outputs=[output], name=name)
        self.insert(node)
        return output

    def _new(self, op: str, inputs: list[ir.Value], attributes: dict[str, list[int]], like: ir.Value) -> ir.Value:
        output = ir.val(fresh_name(self.graph, f"{like.name}_first"), like.dtype, like.shape)
        node = ir.node(op, inputs, attributes, outputs=[output], name=fresh_name(self.graph, f"{like.name}_to_first"))
        self.insert(node)
        return output


def replace(old: ir.Value, new: ir.Value) -> None:
    """Have `new` stand for `old` everywhere; as a graph output it takes the name too."""
    if old.is_graph_output():
        old.name, new.name = new.name, old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


class Image(NamedTuple):
    """A shape (N, C, H, W) of which all but the batch are numbers."""

    n: Dim
    c: int
    h: int
    w: int

    @property
    def last(self) -> list[Dim]:
        """(N, H, W, C)."""
        return [self.n, self.h, self.w, self.c]

    @property
    def batch(self) -> int | str:
        """The batch as the kernels take it: a number, or the name of a symbol."""
        return self.n if isinstance(self.n, int) else "n"


def image(value: ir.Value | None) -> Image | None:
    """The shape of a float32 value of rank 4 with a known image size, else None."""
    if value is None or value.shape is None or len(value.shape) != 4 or value.dtype != ir.DataType.FLOAT:
        return None
    n, c, h, w = value.shape
    return Image(n, c, h, w) if isinstance(c, int) and isinstance(h, int) and isinstance(w, int) else None
