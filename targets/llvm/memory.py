"""Where values lie in memory: one workspace, in which values that are not needed at the same time share bytes.

Sizes may be symbolic, as with an open batch. A size is ``bytes * factor`` where `factor` is the product of the symbolic
dimensions; values of one factor share an arena, whose layout is planned for factor 1 and holds for every other.
Within an arena larger values choose first, each the lowest place that is free as long as it lives ("greedy by size":
Y. Pisarchyk, J. Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Hashable, Sequence
from typing import Any

from tvm import tirx

Expr = Any
"""An int64 expression of TIR."""
ALIGNMENT = 64  # bytes: a cache line, and the widest vector


@dataclasses.dataclass(frozen=True)
class Size:
    """``bytes * prod(factors)``; `factors` are symbolic int64 expressions."""

    bytes: int
    factors: tuple[Expr, ...]

    @property
    def key(self) -> str:
        """Equal for equal factors."""
        return " * ".join(sorted(f"({factor})" for factor in self.factors))


def text(size: Expr) -> int | str:
    """A size as a number, or as a formula such as ``12288 * N``."""
    return int(size) if isinstance(size, tirx.IntImm) else re.sub(r"T\.int64\((\d+)\)", r"\1", str(size))


def size_of(shape: Sequence[Any], itemsize: int) -> Size:
    """The size of a tensor of `shape` (TIR integers and expressions)."""
    known = [int(d) for d in shape if isinstance(d, tirx.IntImm)]
    return Size(math.prod(known) * itemsize, tuple(d for d in shape if not isinstance(d, tirx.IntImm)))


@dataclasses.dataclass(frozen=True)
class Span:
    """A value's size, and the first and last step (inclusive) at which it must exist."""

    size: Size
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """The offset of each value in bytes, and the workspace's size: int64 expressions."""

    offsets: dict[Hashable, Expr]
    total: Expr


def plan(spans: dict[Hashable, Span]) -> Layout:
    """Lay the values out. Deterministic: ties go by the order of `spans`."""
    arenas: dict[str, dict[Hashable, Span]] = {}
    for name, span in spans.items():
        arenas.setdefault(span.size.key, {})[name] = span
    offsets: dict[Hashable, Expr] = {}
    base: Expr = tirx.IntImm("int64", 0)
    for key in sorted(arenas):
        members = arenas[key]
        places, height = _place(members)
        factor: Any = tirx.IntImm("int64", 1)
        for term in next(iter(members.values())).size.factors:
            factor = factor * term
        for name, place in places.items():
            offsets[name] = base + factor * place
        base = base + factor * height
    return Layout(offsets, base)


def _place(members: dict[Hashable, Span]) -> tuple[dict[Hashable, int], int]:
    """Offsets in an arena of factor 1, and its height."""
    order = sorted(members, key=lambda name: -members[name].size.bytes)  # stable
    placed: dict[Hashable, tuple[int, int]] = {}
    for name in order:
        span, need = members[name], _round(members[name].size.bytes)
        others = [placed[o] for o in placed if members[o].first <= span.last and span.first <= members[o].last]
        start = 0
        for low, high in sorted(others):
            if low - start >= need:
                break
            start = max(start, high)
        placed[name] = (start, start + need)
    return {name: low for name, (low, _) in placed.items()}, max(high for _, high in placed.values())


def _round(size: int) -> int:
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT
