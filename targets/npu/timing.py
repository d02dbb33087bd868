"""When each instruction of a stream starts and ends: an event simulation of its queues and semaphores.

A queue's words start in order, one when the unit is done with the one before. A word starts when its tokens are there.
A memory has one port that transfers share: whichever asks first goes first. Latency delays a transfer's end but not
the next one's start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from graphopt.errors import ArtifactError
from graphopt.targets.npu import cycles
from graphopt.targets.npu.isa import (
    CONSTANTS,
    QUEUES,
    Add,
    Exec,
    Fill,
    Load,
    Lookup,
    Pool,
    Requant,
    Store,
    Unpack,
    Word,
    queue_of,
    tokens,
)
from graphopt.targets.npu.machine import Machine, Memory
from graphopt.targets.npu.stream import Stream


@dataclasses.dataclass(frozen=True)
class Timing:
    """Cycles and traffic of one stream.

    `busy`: cycles each engine works ("load <memory>", "exec", "vector", "store") and each port ("port <memory>").
    `read`: bytes read per space ("constants", "activations"); `written`: bytes written.
    """

    cycles: int
    macs: int
    busy: dict[str, int]
    read: dict[str, int]
    written: int

    @property
    def bound(self) -> str:
        """What was busy longest."""
        return max(self.busy, key=lambda engine: self.busy[engine], default="none")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Cycle in which each word of a stream starts, its unit is done with it (`end`: the next may start), and it has
    finished (what it wrote is there); `ready`: when its queue had come to it."""

    start: list[int]
    end: list[int]
    finish: list[int]
    ready: list[int]

    @property
    def cycles(self) -> int:
        """When the last word has finished."""
        return max(self.finish, default=0)


class _Work(NamedTuple):
    """What a word asks of the machine."""

    engine: str
    memory: Memory | None
    cycles: int


def time_stream(stream: Stream, machine: Machine) -> Timing:
    """Simulate the events of `stream` on `machine`, and add up what the engines did.

    Raises:
        ArtifactError: words wait for tokens that never come.
    """
    tally = add_up(stream.instructions, machine)
    return dataclasses.replace(tally, cycles=schedule(stream, machine).cycles)


def add_up(words: Iterable[Word], machine: Machine) -> Timing:
    """What the engines do for `words`, without the time between; `cycles` is 0."""
    read = {"constants": 0, "activations": 0}
    busy: dict[str, int] = {}
    written = macs = 0
    for word in words:
        work = _work(word, machine)
        if work.cycles:
            busy[work.engine] = busy.get(work.engine, 0) + work.cycles
        if work.memory is not None:
            port = f"port {work.memory.name}"
            busy[port] = busy.get(port, 0) + work.cycles
        if isinstance(word, Store):
            written += word.planes * word.rows * word.size
        elif isinstance(word, Unpack):
            read["constants"] += word.packed
        elif isinstance(word, Load):
            space = "constants" if word.space == CONSTANTS else "activations"
            read[space] += word.planes * word.rows * word.size
        elif isinstance(word, Exec):
            macs += cycles.macs(word)
    return Timing(0, macs, busy, read, written)


@lru_cache(maxsize=256)
def schedule(stream: Stream, machine: Machine) -> Schedule:
    """When each word starts and has finished.

    Raises:
        ArtifactError: words wait for tokens that never come.
    """
    clock = _Clock(stream, machine)
    segment: list[list[int]] = [[] for _ in QUEUES]
    for number, word in enumerate(stream.instructions):
        queue = queue_of(word)
        if queue is not None:
            segment[queue].append(number)
            continue
        clock.run(segment)
        clock.barrier(number)
        segment = [[] for _ in QUEUES]
    clock.run(segment)
    return Schedule(clock.start, clock.end, clock.finish, clock.ready)


class _Clock:
    """The time of every queue and port, and the tokens between queues: when each was given."""

    def __init__(self, stream: Stream, machine: Machine) -> None:
        count = len(stream.instructions)
        self.start, self.end, self.finish, self.ready = ([0] * count for _ in range(4))
        self._words, self._machine, self._node = stream.instructions, machine, stream.node
        self._free, self._last = [0] * len(QUEUES), [0] * len(QUEUES)
        self._ports: dict[str, int] = {}
        self._given: list[list[list[int]]] = [[[] for _ in QUEUES] for _ in QUEUES]  # [to][from]
        self._taken = [[0] * len(QUEUES) for _ in QUEUES]

    def run(self, queues: list[list[int]]) -> None:
        """Work through the words of a stretch between two fences."""
        at = [0] * len(queues)
        heads: list[tuple[int, _Work] | None] = [None] * len(queues)
        left = sum(map(len, queues))
        while left:
            best, best_start = -1, 0
            for queue, numbers in enumerate(queues):
                if at[queue] == len(numbers):
                    continue
                head = heads[queue]
                if head is None:
                    ready = self._tokens(queue, self._words[numbers[at[queue]]])
                    if ready < 0:
                        continue
                    head = heads[queue] = ready, _work(self._words[numbers[at[queue]]], self._machine)
                start, memory = head[0], head[1].memory
                if memory is not None:
                    start = max(start, self._ports.get(memory.name, 0))
                if best < 0 or start < best_start:
                    best, best_start = queue, start
            if best < 0:
                self._deadlock([numbers[at[q]] for q, numbers in enumerate(queues) if at[q] < len(numbers)])
            head = heads[best]
            assert head is not None
            self._issue(best, queues[best][at[best]], best_start, head[1])
            at[best] += 1
            heads[best] = None
            left -= 1

    def _tokens(self, queue: int, word: Word) -> int:
        """When queue and tokens are ready for `word`; -1 if a token is not given yet."""
        ready = self._free[queue]
        if word.wait:
            given, taken = self._given[queue], self._taken[queue]
            for source, count in enumerate(tokens(word.wait)):
                if count:
                    if taken[source] + count > len(given[source]):
                        return -1
                    ready = max(ready, given[source][taken[source] + count - 1])
        return ready

    def _issue(self, queue: int, number: int, start: int, work: _Work) -> None:
        word = self._words[number]
        self.ready[number] = self._free[queue]
        end = finish = start + max(work.cycles, 1)
        if work.memory is not None:
            self._ports[work.memory.name] = end
            finish += work.memory.latency_cycles
        finish = self._last[queue] = max(finish, self._last[queue])
        self._free[queue] = end
        self.start[number], self.end[number], self.finish[number] = start, end, finish
        if word.wait:
            taken = self._taken[queue]
            for source, count in enumerate(tokens(word.wait)):
                taken[source] += count
        if word.signal:
            for target, count in enumerate(tokens(word.signal)):
                self._given[target][queue] += [finish] * count

    def barrier(self, number: int) -> None:
        """All queues have come to the fence `number`."""
        now = max(self.finish[:number], default=0)
        self._free = [now] * len(QUEUES)
        self.start[number] = self.end[number] = self.finish[number] = self.ready[number] = now

    def _deadlock(self, waiting: list[int]) -> None:
        words = ", ".join(f"{number} ({self._words[number].MNEMONIC})" for number in waiting)
        raise ArtifactError(
            f"the command stream of {self._node!r} is in deadlock: its words {words} wait for tokens that never come."
        )


def _work(word: Word, machine: Machine) -> _Work:
    """Engine, memory whose port is used, and cycles."""
    if isinstance(word, Store):
        memory = machine.memory("activations")
        return _Work("store", memory, cycles.transfer_cycles(memory, word))
    if isinstance(word, Load):
        memory = machine.memory("constants" if word.space == CONSTANTS else "activations")
        return _Work(f"load {memory.name}", memory, cycles.transfer_cycles(memory, word))
    if isinstance(word, Unpack):
        memory = machine.memory("constants")
        return _Work(f"load {memory.name}", memory, cycles.unpack_cycles(machine, word.packed, word.size))
    if isinstance(word, Fill):
        size = word.planes * word.rows * word.size
        return _Work(f"load {machine.memory('activations').name}", None, cycles.fill_cycles(machine, size))
    if isinstance(word, Exec):
        return _Work("exec", None, cycles.exec_cycles(machine, word))
    return (
        _Work("vector", None, cycles.vector_cycles(machine, *_elements(word))) if queue_of(word) is not None else _IDLE
    )


def _elements(word: Word) -> tuple[int, int]:
    """Channels, and for each of them what the vector unit takes in."""
    if isinstance(word, Requant):
        return word.channels, word.rows * word.columns
    return 1, moved(word)[0]


def moved(word: Word) -> tuple[int, int]:
    """Elements that a word of the vector unit other than requant takes in (pairs count as one) and yields."""
    if isinstance(word, Pool):
        result = word.planes * word.oh * word.ow
        return result * word.kh * word.kw, result
    assert isinstance(word, Add | Lookup)
    result = word.planes * word.rows * word.columns
    return result, result


_IDLE = _Work("end", None, 0)
