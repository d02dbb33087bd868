"""How much of the scratchpad holds something that is still to be read, over time."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.stream import Stream
from graphopt.targets.npu.timing import schedule
from graphopt.targets.npu.touches import SCRATCHPAD, touches

Array = np.ndarray[Any, Any]
PAGE = 64
"""Bytes that count together."""


def occupancy(stream: Stream, machine: Machine, points: int = 256) -> list[tuple[int, int]]:
    """(cycle, bytes in use) at up to `points` evenly spaced cycles.

    A page is in use from the start of the word that writes it to the end of the last one that reads it before it is
    written anew.
    """
    plan = schedule(stream, machine)
    pages = -(-machine.scratchpad_bytes // PAGE)
    since, until = np.full(pages, -1, np.int64), np.full(pages, -1, np.int64)
    taken: list[Array] = []
    given: list[Array] = []
    for number in sorted(range(len(stream.instructions)), key=lambda n: plan.start[n]):
        for touch in touches(stream.instructions[number]):
            if touch.memory != SCRATCHPAD:
                continue
            where = np.arange(touch.start // PAGE, -(-touch.end // PAGE))
            if not touch.write:
                until[where] = np.maximum(until[where], plan.finish[number])
                continue
            spent = where[(until[where] > since[where]) & (until[where] <= plan.start[number])]
            taken.append(since[spent])
            given.append(until[spent])
            fresh = np.concatenate([spent, where[since[where] < 0]])
            since[fresh] = until[fresh] = plan.start[number]
    read = until > since
    starts, ends = np.sort(np.concatenate([*taken, since[read]])), np.sort(np.concatenate([*given, until[read]]))
    at = np.unique(np.linspace(0, plan.cycles, points).astype(np.int64))
    used = np.searchsorted(starts, at, "right") - np.searchsorted(ends, at, "right")
    return [(int(cycle), int(count) * PAGE) for cycle, count in zip(at, used, strict=True)]
