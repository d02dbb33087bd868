"""Where the cycles of a stream go: an account per source node in which every cycle has one owner and one class.

A cycle belongs to the word that the array works on; else to the one the vector unit works on; else to the word that
is next on either, which waits: for a transfer (``dma``), or for something else (``dependency``). What is left at the
end drains (``dma``). So the nodes' cycles add up to the stream's, and a node has no fewer than its array needs.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from graphopt.targets.npu.energy import Events, count
from graphopt.targets.npu.isa import (
    CONSTANTS,
    EXECUTE,
    LOAD,
    LOAD_CONSTANTS,
    QUEUES,
    STORE,
    VECTOR,
    Load,
    Unpack,
    queue_of,
)
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.stream import Stream
from graphopt.targets.npu.timing import Schedule, schedule

Class = Literal["compute", "vector", "dma", "dependency"]
CLASSES: tuple[Class, ...] = ("compute", "vector", "dma", "dependency")


@dataclasses.dataclass
class Account:
    """One source node. `cycles` by class; `busy`: cycles each queue works for it; `read`, `written`: DRAM bytes."""

    name: str
    cycles: dict[Class, int]
    busy: dict[str, int]
    read: dict[str, int]
    written: int
    events: Events
    words: int

    @property
    def total(self) -> int:
        """All cycles it owns."""
        return sum(self.cycles.values())


class Stretch(NamedTuple):
    """Cycles [start, end) that one node owns, all of one class."""

    start: int
    end: int
    node: int
    kind: Class


def profile(stream: Stream, machine: Machine) -> list[Account]:
    """The accounts of the source nodes of `stream`, in its order."""
    plan = schedule(stream, machine)
    firsts = [span.first for span in stream.spans]
    ends = [*firsts[1:], len(stream.instructions)]
    accounts = [_account(stream, machine, plan, n, *at) for n, at in enumerate(zip(firsts, ends, strict=True))]
    for start, end, node, kind in stretches(stream, machine):
        accounts[node].cycles[kind] += end - start
    return accounts


def _account(stream: Stream, machine: Machine, plan: Schedule, number: int, first: int, end: int) -> Account:
    words = stream.instructions[first:end]
    busy: dict[str, int] = dict.fromkeys(QUEUES, 0)
    read, written = {"constants": 0, "activations": 0}, 0
    for at, word in enumerate(words, first):
        queue = queue_of(word)
        if queue is None:
            continue
        busy[QUEUES[queue]] += plan.end[at] - plan.start[at]
        if isinstance(word, Unpack):
            read["constants"] += word.packed
        elif isinstance(word, Load):
            size = word.planes * word.rows * word.size
            if queue == STORE:
                written += size
            else:
                read["constants" if word.space == CONSTANTS else "activations"] += size
    cycles = dict.fromkeys(CLASSES, 0)
    return Account(stream.spans[number].node, cycles, busy, read, written, count(words, machine), len(words))


def owners(stream: Stream) -> list[int]:
    """For each word the number of the span it belongs to."""
    firsts = [span.first for span in stream.spans]
    return [max(bisect.bisect_right(firsts, at) - 1, 0) for at in range(len(stream.instructions))]


def stretches(stream: Stream, machine: Machine) -> Iterator[Stretch]:
    """All cycles of `stream` from the first on, each in one stretch."""
    plan = schedule(stream, machine)
    owner = owners(stream)
    array, vector = _of_queue(stream, EXECUTE), _of_queue(stream, VECTOR)
    transfers = {plan.finish[at] for queue in (LOAD_CONSTANTS, LOAD, STORE) for at in _of_queue(stream, queue)}
    now = 0
    for at, start, end, kind in _worked(plan, array, vector):
        node = owner[at]
        if start > now:
            yield Stretch(now, start, node, "dma" if start in transfers else "dependency")
        yield Stretch(start, end, node, kind)
        now = end
    if plan.cycles > now:
        yield Stretch(now, plan.cycles, len(stream.spans) - 1, "dma")


def _of_queue(stream: Stream, queue: int) -> list[int]:
    return [number for number, word in enumerate(stream.instructions) if queue_of(word) == queue]


def _worked(plan: Schedule, array: Sequence[int], vector: Sequence[int]) -> Iterator[tuple[int, int, int, Class]]:
    """Word, start, end and class of what the array does, and the vector unit while the array rests; in order."""
    waiting, now = iter(vector), 0
    current = next(waiting, None)
    for at in (*array, None):
        until = plan.cycles if at is None else plan.start[at]
        while current is not None and plan.start[current] < until:
            start, end = max(plan.start[current], now), min(plan.finish[current], until)
            if start < end:
                yield current, start, end, "vector"
                now = end
            if plan.finish[current] > until:
                break  # goes on while the array works, and may do so after it
            current = next(waiting, None)
        if at is not None:
            yield at, plan.start[at], plan.finish[at], "compute"
            now = plan.finish[at]
