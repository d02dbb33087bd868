"""Accesses within their buffers, for all sizes of open dimensions: proved, refuted by an example, or neither.

An index i of a dimension of d elements is proved by TVM's analyzer (its bounds and rewriting, then Z3) and `prove` to
be ``0 <= i < d`` wherever the conditions around it hold, all open dimensions being at least 1. What they can't prove is
tried at thousands of points, the corners of loops and threads above all: one outside is a fault if there are such at
the smallest sizes, the largest, and most of those between. A model may allow fewer sizes than its types say (as no
more words than it has positions), so what is outside at some sizes only stays open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Generator
from typing import Any

import numpy as np
from tvm.ir import Range
from tvm.sym import Analyzer, ConstIntBound

from graphopt.targets.cuda.checks.events import Access, Event, Let, Loop, events, open_dimensions, open_sizes
from graphopt.targets.cuda.checks.numbers import Unknown, evaluate
from graphopt.targets.cuda.checks.prove import within

_SIZES = np.array([1, 2, 3, 4, 5, 7, 8, 16, 17, 29, 31, 32, 33, 48, 64, 100])
_MOST = 1 << 31
EACH = 512
POINTS = EACH * _SIZES.size
"""Points tried at each size of the first open dimension; others have the same or, at every second point, any."""


@dataclasses.dataclass
class Bounds:
    """Counts of accesses by verdict; `by_data` have an index or a condition that is read from memory.

    `faults`: a sentence for each that examples show to be outside. `open`: neither proved nor refuted.
    """

    proved: int = 0
    by_data: int = 0
    open: list[str] = dataclasses.field(default_factory=list[str])
    faults: list[str] = dataclasses.field(default_factory=list[str])


def check_bounds(function: Any) -> Bounds:
    """Of each access in a lowered PrimFunc whose buffers still have their dimensions."""
    found, analyzer = Bounds(), Analyzer()
    sizes = open_dimensions(function)
    for variable in sizes:
        analyzer.update(variable, ConstIntBound(1, _MOST))
    positive = tuple(size >= 1 for size in open_sizes(function))
    with _where(analyzer, positive):
        _check(events(function), analyzer, [*map(_Size, sizes), *map(_Given, positive)], found, set())
    return found


@dataclasses.dataclass(frozen=True)
class _Size:
    variable: Any


@dataclasses.dataclass(frozen=True)
class _Given:
    condition: Any


def _check(body: list[Event], analyzer: Any, scope: list[Any], found: Bounds, seen: set[str]) -> None:
    scope = list(scope)
    for event in body:
        if isinstance(event, Loop):
            analyzer.bind(event.variable, _range(event), True)
            _check(event.body, analyzer, [*scope, event], found, seen)
        elif isinstance(event, Let):
            analyzer.bind(event.variable, event.value, True)
            scope.append(event)
        elif isinstance(event, Access):
            key = f"{event.buffer.name} {event.indices} {event.conditions}"
            if key not in seen:
                seen.add(key)
                _judge(event, analyzer, scope, found)


def _range(loop: Loop) -> Any:
    return Range.from_min_extent(loop.start, loop.extent)


def _judge(access: Access, analyzer: Any, scope: list[Any], found: Bounds) -> None:
    limits = _limits(access)
    ranges = [one.variable < one.start + one.extent for one in scope if isinstance(one, Loop)]
    given = [one.condition for one in scope if isinstance(one, _Given)]
    known = [*given, *access.conditions, *ranges]
    with _where(analyzer, access.conditions):
        if all(within(analyzer, index, size, known) for index, size in limits):
            found.proved += 1
            return
    try:
        example = _example(access, limits, scope)
    except Unknown:
        found.by_data += 1
        return
    text = f"{'writes' if access.writes else 'reads'} {access.buffer.name}[{', '.join(map(str, access.indices))}]"
    if example is not None:
        text += f" outside of its {', '.join(str(size) for _, size in limits)} elements at {example[0]}"
    text = re.sub(r"T\.int(?:32|64)\((-?\d+)\)", r"\1", text)
    (found.faults if example is not None and example[1] else found.open).append(text)


def _limits(access: Access) -> list[tuple[Any, Any]]:
    shape = list(access.buffer.shape)
    if len(shape) == len(access.indices):
        return list(zip(access.indices, shape, strict=True))
    (first,), strides = access.indices, list(access.buffer.strides)
    total = shape[0] * strides[0] if strides else math.prod(shape)  # rows may be longer, against bank conflicts
    if access.fragment is None:
        return [(first, total)]
    last = first + access.fragment.stride * (access.fragment.rows - 1) + (access.fragment.columns - 1)
    return [(first, total), (last, total)]


@contextlib.contextmanager
def _where(analyzer: Any, conditions: tuple[Any, ...]) -> Generator[None, None, None]:
    with contextlib.ExitStack() as stack:
        for condition in conditions:
            stack.enter_context(analyzer.constraint_scope(condition))
        yield


def _example(access: Access, limits: list[tuple[Any, Any]], scope: list[Any]) -> tuple[str, bool] | None:
    """Values of the variables at which the access is done and outside, and whether there are some at most sizes.

    None where none of the points is outside.

    Raises:
        Unknown: they depend on what is in memory.
    """
    rng, values = np.random.default_rng(0), dict[Any, Any]()
    done, same = np.ones(POINTS, bool), np.repeat(_SIZES, EACH)
    for one in scope:
        if isinstance(one, _Size):
            any_size = rng.choice(_SIZES, POINTS)
            values[one.variable] = np.where(np.arange(POINTS) % 2, any_size if values else same, same)
        elif isinstance(one, _Given):
            done &= evaluate(one.condition, values).astype(bool)
        elif isinstance(one, Let):
            with contextlib.suppress(Unknown):
                values[one.variable] = evaluate(one.value, values)
        else:
            extent = np.broadcast_to(evaluate(one.extent, values), POINTS)
            done &= extent > 0
            inside = (rng.random(POINTS) * np.maximum(extent, 1)).astype(np.int64)
            corner = rng.integers(0, 4, POINTS)
            inside = np.where(corner == 0, 0, np.where(corner == 1, extent - 1, inside))
            values[one.variable] = inside + evaluate(one.start, values)
    for condition in access.conditions:
        done = done & evaluate(condition, values).astype(bool)
    outside = np.zeros(POINTS, bool)
    for index, size in limits:
        at = evaluate(index, values)
        outside = outside | (at < 0) | (at >= evaluate(size, values))
    points = np.flatnonzero(done & outside)
    if not points.size:
        return None
    tried, wrong = (array.reshape(-1, EACH).any(1) for array in (np.broadcast_to(done, POINTS), done & outside))
    wrong = np.asarray(wrong)[np.asarray(tried)]
    text = ", ".join(f"{v} = {int(np.broadcast_to(a, POINTS)[points[0]])}" for v, a in values.items())
    return text, bool(wrong[0] and wrong[-1] and wrong.mean() > 0.5)
