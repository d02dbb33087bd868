"""Shared memory of one block, as its threads touch it one after the other: who touched what, and what is under way.

An asynchronous copy (cp.async) writes at any time from where a thread issues it to where that thread waits for the
group it was committed to (PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy"); other threads find
it there after a barrier that follows the wait. So a place may not be touched by anybody while a copy to it is under
way, nor by other threads between the barriers before its issue and after its wait.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from graphopt.targets.cuda.checks.numbers import Array


@dataclasses.dataclass(frozen=True)
class Touch:
    """`who`, numbers of threads, at `places`, numbers of elements of `memory`; one for one, in any order.

    What a warp touches together, each thread some of it, is by a number that nobody else has: which of its threads has
    which element is not defined.
    """

    memory: Any
    places: Array
    who: Array
    writes: bool


@dataclasses.dataclass(frozen=True)
class _Copy:
    touch: Touch
    group: int


class Shared:
    """`faults`: a sentence for each race, and for each read of what was never written; `intervals` between barriers."""

    def __init__(self) -> None:
        self.intervals = 0
        self.faults: list[str] = []
        self._since_barrier: list[Touch] = []
        self._copies: list[_Copy] = []
        self._committed = 0
        self._busy: dict[Any, Array] = {}
        self._written: dict[Any, Array | None] = {}

    def touch(self, touch: Touch) -> None:
        """An ordinary access."""
        if self._is_in_flight(touch):
            return
        self._since_barrier.append(touch)
        if touch.writes:
            self._arrived(touch)

    def copy(self, touch: Touch) -> None:
        """An asynchronous copy is issued."""
        if self._is_in_flight(touch):
            return
        self._since_barrier.append(touch)
        self._copies.append(_Copy(touch, self._committed))
        self._busy.setdefault(touch.memory, np.zeros(_size(touch.memory), bool))[touch.places] = True

    def commit(self) -> None:
        """All threads make groups of their copies since the last time."""
        self._committed += 1

    def wait(self, pending: int) -> None:
        """All threads wait for their groups but the last `pending` ones."""
        for copy in self._copies:
            if copy.group + pending < self._committed:
                self._arrived(copy.touch)
        self._copies = [copy for copy in self._copies if copy.group + pending >= self._committed]
        self._busy = {}
        for copy in self._copies:
            memory = copy.touch.memory
            self._busy.setdefault(memory, np.zeros(_size(memory), bool))[copy.touch.places] = True

    def barrier(self) -> None:
        """What was touched since the last one must not clash, nor have been read before it was written."""
        self.intervals += bool(self._since_barrier)
        for memory in {touch.memory for touch in self._since_barrier}:
            touches = [touch for touch in self._since_barrier if touch.memory.same_as(memory)]
            if any(touch.writes for touch in touches):
                place = _clash(touches)
                if place is not None:
                    self.faults.append(
                        f"has threads at element {place} of shared {memory.name} with no barrier between, one writing"
                    )
            self._reads(memory, [touch for touch in touches if not touch.writes])
        self._since_barrier = [copy.touch for copy in self._copies]

    def skip(self, memories: set[Any]) -> None:
        """What follows is no neighbour of what was; between them `memories` may have been written anywhere."""
        self._since_barrier, self._copies, self._busy = [], [], {}
        self._written.update(dict.fromkeys(memories))

    def unknown(self, memory: Any) -> None:
        """It is not known where `memory` is written."""
        self._written[memory] = None

    def _is_in_flight(self, touch: Touch) -> bool:
        busy = self._busy.get(touch.memory)
        under_way = touch.places[busy[touch.places]] if busy is not None else touch.places[:0]
        if under_way.size:
            self.faults.append(
                f"{'writes' if touch.writes else 'reads'} element {int(under_way[0])} of shared {touch.memory.name} "
                "while an asynchronous copy to it is under way"
            )
        return bool(under_way.size)

    def _arrived(self, touch: Touch) -> None:
        written = self._written.setdefault(touch.memory, np.zeros(_size(touch.memory), bool))
        if written is not None:
            written[touch.places] = True

    def _reads(self, memory: Any, reads: list[Touch]) -> None:
        written = self._written.setdefault(memory, np.zeros(_size(memory), bool))
        if written is None:
            return
        for touch in reads:
            missing = touch.places[~written[touch.places]]
            if missing.size:
                self.faults.append(f"reads element {int(missing[0])} of shared {memory.name}, which nobody has written")
                return


def _size(memory: Any) -> int:
    return math.prod(int(size) for size in memory.shape)


def _clash(touches: list[Touch]) -> int | None:
    """An element that one writes and another touches."""
    size = _size(touches[0].memory)
    first, last, written = np.full(size, 1 << 60), np.full(size, -1), np.zeros(size, bool)
    for touch in touches:
        np.minimum.at(first, touch.places, touch.who)
        np.maximum.at(last, touch.places, touch.who)
        written[touch.places] |= touch.writes
    found = np.flatnonzero(written & (first < last))
    return int(found[0]) if found.size else None
