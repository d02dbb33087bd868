"""The tokens of a program: what each word must wait for, so that the queues run beside each other and nothing changes.

Two words conflict if they touch overlapping bytes of a memory and one of them writes. Of two conflicting words in
different queues the later one must wait for the earlier one. Queues finish in order, so a word waits for at most one
word of each other queue, and not for one it waits for by way of others already.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.targets.npu.isa import EXECUTE, LOAD, QUEUES, VECTOR, Word, queue_of
from graphopt.targets.npu.touches import MEMORIES, Touch, touches

Array = np.ndarray[Any, Any]
ENOUGH = 128  # entries of a memory after which old ones are looked for
Clock = tuple[int, ...]
"""For each queue, how many of its words have finished at some point."""


class History:
    """Who touched what so far: ranges of bytes with the queue of the word and its number within the queue, from 1."""

    def __init__(self) -> None:
        # start, end, write, then a number in the column of its queue
        self._tables = [np.zeros((256, 3 + len(QUEUES)), np.int64) for _ in MEMORIES]
        self._counts = [0] * len(MEMORIES)

    def conflicts(self, touch: Touch) -> list[int]:
        """For each queue the last word that `touch` must come after, 0 for none."""
        table = self._tables[touch.memory][: self._counts[touch.memory]]
        hit = (table[:, 0] < touch.end) & (touch.start < table[:, 1])
        if not touch.write:
            hit &= table[:, 2] == 1
        rows = hit.nonzero()[0]
        if len(rows) < 2:
            return table[rows[0], 3:].tolist() if len(rows) else [0] * len(QUEUES)
        return table[rows, 3:].max(axis=0).tolist()

    def add(self, touch: Touch, queue: int, number: int) -> None:
        """Note `touch`. What it writes over needs no more be known: who conflicts with that conflicts with it too."""
        memory, count = touch.memory, self._counts[touch.memory]
        table = self._tables[memory][:count]
        inside = (touch.start <= table[:, 0]) & (table[:, 1] <= touch.end)
        if not touch.write:
            inside &= (table[:, 2] == 0) & (table[:, 3 + queue] > 0)
        places = inside.nonzero()[0].tolist()
        if len(places) > 1:
            count = self._keep(memory, ~inside)
        if count == len(self._tables[memory]):
            self._tables[memory] = np.concatenate([self._tables[memory], np.zeros_like(self._tables[memory])])
        place = places[0] if len(places) == 1 else count
        row = [touch.start, touch.end, int(touch.write), 0, 0, 0, 0, 0]
        row[3 + queue] = number
        self._tables[memory][place] = row
        self._counts[memory] = max(count, place + 1)

    def forget(self, floor: Sequence[int]) -> None:
        """Drop words up to `floor` of each queue: everyone to come has waited for them."""
        for memory, count in enumerate(self._counts):
            if count > ENOUGH:
                self._keep(memory, np.any(self._tables[memory][:count, 3:] > floor, axis=1))

    def merge(self, floor: Sequence[int]) -> None:
        """Make one entry per queue of the words up to `floor`, which covers all their bytes: a little too much."""
        for memory, count in enumerate(self._counts):
            if count <= ENOUGH:
                continue
            table = self._tables[memory][:count]
            old = (table[:, 3:] <= floor).all(axis=1)
            for column in range(3, 3 + len(QUEUES)):
                for write in (0, 1):
                    rows = np.flatnonzero(old & (table[:, column] > 0) & (table[:, 2] == write))
                    if len(rows) > 1:
                        first = rows[0]
                        table[first, 0], table[first, 1] = table[rows, 0].min(), table[rows, 1].max()
                        table[first, column] = table[rows, column].max()
                        table[rows[1:], 1] = -1
            self._keep(memory, table[:, 1] >= 0)

    def _keep(self, memory: int, mask: Array) -> int:
        kept = self._tables[memory][: self._counts[memory]][mask]
        self._tables[memory][: len(kept)] = kept
        self._counts[memory] = len(kept)
        return len(kept)


def add_tokens(words: Sequence[Word]) -> list[Word]:
    """`words` with `wait` and `signal` set for their conflicts; what they had is replaced."""
    history = History()
    clocks: list[list[Clock]] = [[] for _ in QUEUES]  # what has finished when a queue's word finishes
    waits, signals = [0] * len(words), [0] * len(words)
    places: list[list[int]] = [[] for _ in QUEUES]
    idle: Clock = (0,) * len(QUEUES)
    for at, word in enumerate(words):
        queue = queue_of(word)
        if queue is None:
            continue
        clock = clocks[queue][-1] if clocks[queue] else idle
        touched = touches(word)
        needed: dict[int, int] = {}
        for touch in touched:
            for other, number in enumerate(history.conflicts(touch)):
                if number and other != queue and number > max(clock[other], needed.get(other, 0)):
                    needed[other] = number
        # the furthest first: what it has waited for itself need not be waited for again
        for other, number in sorted(needed.items(), key=lambda item: -places[item[0]][item[1] - 1]):
            if number <= clock[other]:
                continue
            before = clocks[other][number - 1]
            clock = tuple(map(max, clock, before))
            waits[at] |= 1 << 3 * other
            signals[places[other][number - 1]] |= 1 << 3 * queue
        places[queue].append(at)
        own = len(places[queue])
        clocks[queue].append((*clock[:queue], own, *clock[queue + 1 :]))
        for touch in touched:
            history.add(touch, queue, own)
        if at % ENOUGH == 0:
            latest = [clocks[q][-1] if clocks[q] else idle for q in (LOAD, EXECUTE, VECTOR)]
            history.merge([min(clock[q] for clock in latest) for q in range(len(QUEUES))])
    return [_with_tokens(word, wait, signal) for word, wait, signal in zip(words, waits, signals, strict=True)]


def _with_tokens(word: Word, wait: int, signal: int) -> Word:
    made = copy.copy(word)
    made.__dict__.update(wait=wait, signal=signal)  # dataclasses.replace takes ten times as long
    return made
