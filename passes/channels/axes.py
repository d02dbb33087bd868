"""Which indices along which axes of which tensors stand or fall together.

Every axis of every value is an array of ids, one for each index along it, or None where nothing may be taken out of
it. Operators hand the arrays on: a Relu yields those of its input, a Concat joins them, a Flatten repeats them. Where
an operator makes two indices meet (the sides of an Add, the channels of a value and the rows of a weight), their ids
are tied; ids tied to each other, directly or not, can only be taken out together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeAlias

import networkx as nx
import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array

Ids: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]] | None"
Dims: TypeAlias = "list[Ids]"


class Opaque(Exception):  # noqa: N818 - an answer, not an error
    """An operator can't be followed; the message says why. All that it reads stays as it is."""


@dataclasses.dataclass
class Axes:
    """The ids of the axes of the values seen so far, their ties, and why some of them have to stay."""

    of: dict[ir.Value, Dims] = dataclasses.field(default_factory=dict[ir.Value, Dims])
    constants: list[ir.Value] = dataclasses.field(default_factory=list[ir.Value])
    ties: nx.Graph[int] = dataclasses.field(default_factory=nx.Graph)
    reasons: dict[int, str] = dataclasses.field(default_factory=dict[int, str])
    count: int = 0

    def dims(self, value: ir.Value | None) -> Dims:
        """The ids of each axis of `value`; a constant gets new ones when it is first seen.

        Raises:
            Opaque: its rank is not known.
        """
        if value is None:
            raise Opaque("an operand is missing")
        if value in self.of:
            return list(self.of[value])
        array = constant_array(value)
        if array is not None:
            self.of[value] = [self.fresh(size) if size > 1 else None for size in array.shape]
            self.constants.append(value)
        elif value.shape is None:
            raise Opaque(f"the rank of `{value.name}` is not known")
        else:
            self.of[value] = [None] * len(value.shape)
        return list(self.of[value])

    def fresh(self, size: int) -> Ids:
        """New ids."""
        self.count += size
        ids = np.arange(self.count - size, self.count)
        self.ties.add_nodes_from(ids.tolist())
        return ids

    def tie(self, a: Ids, b: Ids, why: str) -> Ids:
        """The two axes are indexed alike from here on; where one is fixed, so is the other, for the reason `why`."""
        if a is None or b is None or len(a) != len(b):
            self.fix(a, why)
            self.fix(b, why)
            return None
        self.ties.add_edges_from(zip(a.tolist(), b.tolist(), strict=True))
        return a

    def fix(self, ids: Ids, why: str) -> None:
        """Nothing is taken out of this axis."""
        for one in () if ids is None else ids.tolist():
            self.reasons.setdefault(one, why)

    def fix_all(self, values: Iterable[ir.Value | None], why: str) -> None:
        """Nothing is taken out of any axis of these values."""
        for value in values:
            if value is None:
                continue
            try:
                dims = self.dims(value)
            except Opaque:
                continue
            for ids in dims:
                self.fix(ids, why)


def size(value: ir.Value | None, axis: int) -> int | None:
    """The length of an axis, None where it is not a number."""
    if value is None:
        return None
    array = constant_array(value)
    if array is not None:
        return array.shape[axis]
    found = None if value.shape is None else value.shape[axis]
    return found if isinstance(found, int) else None


def sizes(value: ir.Value | None) -> list[int | str]:
    """The lengths of all axes, symbolic ones by name ("?" where they have none)."""
    if value is None:
        raise Opaque("an operand is missing")
    array = constant_array(value)
    if array is not None:
        return list(array.shape)
    if value.shape is None:
        raise Opaque(f"the rank of `{value.name}` is not known")
    return [dim if isinstance(dim, int) else str(dim.value or "?") for dim in value.shape]
