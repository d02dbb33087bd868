"""Two threads at the same shared memory with no barrier between them, one of them writing.

The kernel's accesses to shared memory are walked through in order, with all threads of a block at once and all values
of the inner loops; of a loop with barriers inside, its first two and its last two rounds; of sizes and blocks, a few.
Which elements are touched between two barriers, and by whom, then is a matter of counting; no value is computed.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import tvm_ffi
from tvm import tirx

from graphopt.targets.cuda.arch import WARP
from graphopt.targets.cuda.checks.events import Access, Barrier, Event, Let, Loop, events, open_dimensions, open_sizes
from graphopt.targets.cuda.checks.numbers import Array, Unknown, evaluate

_INNER = 1 << 14
_SIZES = (1, 3, 40)


@dataclasses.dataclass
class Races:
    """`faults`: a sentence for each race and each barrier that not all threads come to; `unknown`: accesses whose place
    is read from memory, and which were left out; `intervals` between barriers were looked at."""

    intervals: int = 0
    unknown: int = 0
    faults: list[str] = dataclasses.field(default_factory=list[str])


@dataclasses.dataclass(frozen=True)
class _Touch:
    """Threads `who` at `places` of `memory`, both flat."""

    memory: Any
    places: Array
    who: Array
    writes: bool
    by_warp: bool


def check_races(function: Any) -> Races:
    """Of a lowered PrimFunc with its barriers; of one that copies asynchronously nothing is said (`unknown`)."""
    if _is_asynchronous(function):
        return Races(unknown=1)
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


def _is_asynchronous(function: Any) -> bool:
    """The waits of such copies come with barriers that code generation puts in later."""
    keys: list[str] = []

    def attribute(found: Any) -> None:
        keys.append(str(found.attr_key))

    tvm_ffi.structural_walk(function.body, (tirx.AttrStmt, attribute))
    return any(key.startswith("async_") for key in keys)


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
        self.touched: list[_Touch] = []
        self.threads: dict[str, Array] = {}

    def run(self, body: list[Event], values: dict[Any, Array]) -> None:
        """Through `body`, whose variables are `values`, to its end."""
        self.walk(body, dict(values))
        self.barrier()

    def walk(self, body: list[Event], values: dict[Any, Array]) -> None:
        for event in body:
            if isinstance(event, Let):
                _let(event, values)
            elif isinstance(event, Access):
                self.touch(event, values, [])
            elif isinstance(event, Barrier):
                self.meet(event, values)
            elif event.thread.startswith("threadIdx"):
                self.bind_thread(event, values)
            elif event.thread:
                last = np.maximum(evaluate(event.extent, values) - 1, 0)
                self.walk(event.body, {**values, event.variable: last if self.corner else np.asarray(0)})
            elif _has_barrier(event.body):
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
        """Its first two and last two rounds; what lies between is not mistaken for neighbours."""
        try:
            extents = np.unique(evaluate(loop.extent, values))
        except Unknown:
            self.found.unknown += 1
            return
        if extents.size > 1:
            self.found.faults.append("has a loop with a barrier that threads run different numbers of times")
        extent, start = int(extents[0]), evaluate(loop.start, values)
        before = -1
        for number in sorted({n for n in (0, 1, extent - 2, extent - 1) if 0 <= n < extent}):
            if number != before + 1:
                self.touched = []
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
        if not str(access.memory.scope()).startswith("shared"):
            return
        if access.by_warp:  # rows of a matrix, which by pointer look like all that lies between them
            self.found.unknown += 1
            return
        try:
            spread, threads = self.spread(access, values, loops)
            done = np.ones(threads.shape, bool)
            for condition in access.conditions:
                done = done & np.broadcast_to(evaluate(condition, spread).astype(bool), done.shape)
            place = np.broadcast_to(evaluate(access.indices[0], spread), done.shape)
        except Unknown:
            self.found.unknown += 1
            return
        place, threads = place[done], np.broadcast_to(threads, done.shape)[done]
        extent = int(np.max(evaluate(access.extent, values)))
        if extent > 1:
            place = (place[:, None] + np.arange(extent)).reshape(-1)
            place, threads = place, np.repeat(threads, extent)
        self.touched.append(_Touch(access.memory, place, threads, access.writes, access.by_warp))

    def spread(self, access: Access, values: dict[Any, Array], loops: list[Loop]) -> tuple[dict[Any, Array], Array]:
        """Values of all variables, threads along the last axis and rounds of the inner loops along the first."""
        extents = [int(np.max(evaluate(loop.extent, values))) for loop in loops]
        total = int(np.prod(extents)) if extents else 1
        rounds = np.arange(total) if total <= _INNER else np.unique(np.linspace(0, total - 1, _INNER).astype(np.int64))
        spread = dict(values)
        for loop, extent, after in zip(loops, extents, _products_after(extents), strict=True):
            spread[loop.variable] = (rounds // after % extent)[:, None] + evaluate(loop.start, values)
        return spread, np.broadcast_to(self.who(), (rounds.size, self.who().size))

    def meet(self, barrier: Barrier, values: dict[Any, Array]) -> None:
        for condition in barrier.conditions:
            try:
                holds = evaluate(condition, values)
            except Unknown:
                self.found.unknown += 1
                continue
            if np.unique(holds).size > 1:
                self.found.faults.append(f"has a barrier that only threads with {condition} come to")
        self.barrier()

    def barrier(self) -> None:
        """What was touched since the last one must not clash; then begin anew."""
        self.found.intervals += bool(self.touched)
        for memory in {touch.memory for touch in self.touched}:
            touches = [touch for touch in self.touched if touch.memory.same_as(memory)]
            if any(touch.writes for touch in touches):
                place = _clash(touches)
                if place is not None:
                    self.found.faults.append(
                        f"has threads at element {place} of shared {memory.name} with no barrier between, one writing"
                    )
        self.touched = []


def _products_after(extents: list[int]) -> list[int]:
    return [*itertools.accumulate(reversed(extents[1:]), int.__mul__, initial=1)][::-1] if extents else []


def _clash(touches: list[_Touch]) -> int | None:
    """An element that one thread writes and another touches."""
    by_warp = any(touch.by_warp for touch in touches)
    size = 1 + max(int(touch.places.max(initial=0)) for touch in touches)
    first, last, written = np.full(size, 1 << 30), np.full(size, -1), np.zeros(size, bool)
    for touch in touches:
        who = touch.who // WARP if by_warp else touch.who
        np.minimum.at(first, touch.places, who)
        np.maximum.at(last, touch.places, who)
        written[touch.places] |= touch.writes
    found = np.flatnonzero(written & (first < last))
    return int(found[0]) if found.size else None


def _has_barrier(body: list[Event]) -> bool:
    return any(isinstance(e, Barrier) or (isinstance(e, Loop) and _has_barrier(e.body)) for e in body)
