"""Two threads at the same shared memory with no barrier between them, one of them writing; copies not waited for.

The kernel's accesses to shared memory are walked through in order, with all threads of a block at once and all values
of the inner loops; of a loop with barriers inside, its first and its last rounds: two each, and as many more as groups
of asynchronous copies may be under way. Of sizes and blocks, a few. Which elements are touched between two barriers,
and by whom, then is a matter of counting (`shared`); no value is computed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from graphopt.targets.cuda.checks.events import (
    Access,
    Barrier,
    Commit,
    Event,
    Let,
    Loop,
    Wait,
    events,
    is_shared,
    open_dimensions,
    open_sizes,
)
from graphopt.targets.cuda.checks.numbers import Array, Unknown, evaluate
from graphopt.targets.cuda.checks.places import touched
from graphopt.targets.cuda.checks.shared import Shared

_SIZES = (1, 3, 40)
_ROUNDS, _MOST_UNDER_WAY = 2, 8


@dataclasses.dataclass
class Races:
    """`faults`: a sentence for each race and each barrier that not all threads come to; `unknown`: accesses whose place
    is read from memory, and which were left out; `intervals` between barriers were looked at."""

    intervals: int = 0
    unknown: int = 0
    faults: list[str] = dataclasses.field(default_factory=list[str])


def check_races(function: Any) -> Races:
    """Of a lowered PrimFunc with its barriers."""
    found, body = Races(), events(function)
    sizes = open_dimensions(function)
    for size in _SIZES if sizes else (1,):
        values = {variable: np.asarray(size) for variable in sizes}
        try:
            if all(evaluate(one, values) >= 1 for one in open_sizes(function)):
                for corner in (0, -1):
                    _kernels(body, dict(values), corner, found)
        except Unknown:  # how many blocks, threads or rounds there are
            found.unknown += 1
    found.faults = list(dict.fromkeys(found.faults))
    return found


def _kernels(body: list[Event], values: dict[Any, Array], corner: int, found: Races) -> None:
    """Each nest of loops over threads is a kernel."""
    for event in body:
        if isinstance(event, Let):
            _let(event, values)
        elif isinstance(event, Loop):
            if event.thread:
                _Block(corner, found).run([event], values)
            else:
                _kernels(event.body, values, corner, found)


def _let(event: Let, values: dict[Any, Array]) -> None:
    try:
        values[event.variable] = evaluate(event.value, values)
    except Unknown:
        values.pop(event.variable, None)


class _Block:
    """One block of a kernel; of the grid, the first (`corner` 0) or the last (-1)."""

    def __init__(self, corner: int, found: Races) -> None:
        self.corner, self.found = corner, found
        self.shared = Shared()
        self.threads: dict[str, Array] = {}
        self.times = itertools.count()

    def run(self, body: list[Event], values: dict[Any, Array]) -> None:
        """Through `body`, whose variables are `values`, to its end."""
        self.walk(body, dict(values))
        self.shared.barrier()
        self.found.intervals += self.shared.intervals
        self.found.faults += self.shared.faults

    def walk(self, body: list[Event], values: dict[Any, Array]) -> None:
        for event in body:
            if isinstance(event, Let):
                _let(event, values)
            elif isinstance(event, Access):
                self.touch(event, values, [])
            elif isinstance(event, Barrier):
                self.all_come(event, "barrier", values, self.shared.barrier)
            elif isinstance(event, Commit):
                self.all_come(event, "group of copies", values, self.shared.commit)
            elif isinstance(event, Wait):
                pending = int(evaluate(event.pending, values))
                self.all_come(event, "wait", values, lambda most=pending: self.shared.wait(most))
            elif event.thread.startswith("threadIdx"):
                self.bind_thread(event, values)
            elif event.thread:
                last = np.maximum(evaluate(event.extent, values) - 1, 0)
                self.walk(event.body, {**values, event.variable: last if self.corner else np.asarray(0)})
            elif any(isinstance(one, Barrier | Commit | Wait) for one in _all(event.body)):
                self.rounds(event, values)
            else:
                self.inner(event.body, values, [event])

    def bind_thread(self, loop: Loop, values: dict[Any, Array]) -> None:
        """One more axis of threads: all values so far are repeated along it."""
        extent = int(evaluate(loop.extent, values))
        before = next(iter(self.threads.values()), np.zeros(1, np.int64)).size
        wider = {name: np.repeat(array, extent) for name, array in self.threads.items()}
        mine = np.tile(np.arange(extent), before)
        spread = {v: np.repeat(a, extent) if np.ndim(a) else a for v, a in values.items()}
        outer = self.threads
        self.threads = {**wider, loop.thread: mine}
        self.walk(loop.body, {**spread, loop.variable: mine})
        self.threads = outer

    def rounds(self, loop: Loop, values: dict[Any, Array]) -> None:
        """Its first and last rounds; what lies between is not mistaken for neighbours."""
        try:
            extents = np.unique(evaluate(loop.extent, values))
        except Unknown:
            self.found.unknown += 1
            return
        if extents.size > 1:
            self.found.faults.append("has a loop with a barrier that threads run different numbers of times")
        extent, start = int(extents[0]), evaluate(loop.start, values)
        inside = list(_all(loop.body))
        waits = [_under_way(one, values) for one in inside if isinstance(one, Wait)]
        issues = any(isinstance(one, Commit) for one in inside)
        few = _ROUNDS + max(waits, default=_MOST_UNDER_WAY if issues else 0)
        before = -1
        for number in sorted({n for n in (*range(few), *range(extent - few, extent)) if 0 <= n < extent}):
            if number != before + 1:
                self.shared.skip({one.memory for one in inside if isinstance(one, Access) and one.writes})
            self.walk(loop.body, {**values, loop.variable: start + number})
            before = number

    def inner(self, body: list[Event], values: dict[Any, Array], loops: list[Loop]) -> None:
        """A nest of loops without barriers: all its rounds at once."""
        for event in body:
            if isinstance(event, Access):
                self.touch(event, values, loops)
            elif isinstance(event, Loop):
                self.inner(event.body, values, [*loops, event])

    def who(self) -> Array:
        """The number of each thread."""
        number: Any = np.zeros(1, np.int64)
        scale = 1
        for axis in ("x", "y", "z"):
            index = self.threads.get(f"threadIdx.{axis}")
            if index is not None:
                number = number + index * scale
                scale *= int(index.max()) + 1
        return number

    def touch(self, access: Access, values: dict[Any, Array], loops: list[Loop]) -> None:
        if not is_shared(access.memory):
            return
        try:
            found = touched(access, values, loops, self.who(), next(self.times))
        except Unknown:
            self.found.unknown += 1
            self.shared.unknown(access.memory)
            return
        if not found.whole:
            self.shared.unknown(access.memory)
        if found.touch is None:
            self.found.faults.append(found.fault)
        elif access.asynchronous:
            self.shared.copy(found.touch)
        else:
            self.shared.touch(found.touch)

    def all_come(
        self, event: Barrier | Commit | Wait, what: str, values: dict[Any, Array], then: Callable[[], None]
    ) -> None:
        """`then` for the block, where its threads agree that the conditions of `event` hold."""
        holds = True
        for condition in event.conditions:
            try:
                found = np.unique(evaluate(condition, values).astype(bool))
            except Unknown:
                self.found.unknown += 1
                continue
            if found.size > 1:
                self.found.faults.append(f"has a {what} that only threads with {condition} come to")
            else:
                holds = holds and bool(found[0])
        if holds:
            then()


def _under_way(wait: Wait, values: dict[Any, Array]) -> int:
    """How many groups of copies may be under way after it."""
    try:
        return int(np.max(evaluate(wait.pending, values)))
    except Unknown:  # it depends on the round
        return _MOST_UNDER_WAY


def _all(body: list[Event]) -> Iterator[Event]:
    for event in body:
        yield event
        if isinstance(event, Loop):
            yield from _all(event.body)
