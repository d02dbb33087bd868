"""A Chrome trace (Perfetto, chrome://tracing) of command streams: a row per queue, and the scratchpad in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from graphopt.targets.npu.isa import QUEUES, queue_of
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.occupancy import occupancy
from graphopt.targets.npu.profile import owners
from graphopt.targets.npu.stream import Stream
from graphopt.targets.npu.timing import schedule

Event = dict[str, Any]


def trace(streams: Sequence[Stream], machine: Machine) -> dict[str, Any]:
    """The document; times are microseconds at the machine's clock, streams run one after the other."""
    events: list[Event] = [{"ph": "M", "name": "process_name", "pid": 0, "args": {"name": machine.name}}]
    events += [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": tid, "args": {"name": name}}
        for tid, name in enumerate(QUEUES)
    ]
    before = 0
    for stream in streams:
        events += _words(stream, machine, before)
        before += schedule(stream, machine).cycles
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _words(stream: Stream, machine: Machine, before: int) -> Iterator[Event]:
    plan, owner = schedule(stream, machine), owners(stream)
    for number, word in enumerate(stream.instructions):
        queue = queue_of(word)
        if queue is None:
            continue
        yield {
            "ph": "X",
            "name": f"{word.MNEMONIC} {stream.spans[owner[number]].node}",
            "cat": word.MNEMONIC,
            "pid": 0,
            "tid": queue,
            "ts": (before + plan.start[number]) / machine.clock_mhz,
            "dur": (plan.finish[number] - plan.start[number]) / machine.clock_mhz,
            "args": {"word": number, "cycle": before + plan.start[number]},
        }
    for cycle, size in occupancy(stream, machine):
        ts = (before + cycle) / machine.clock_mhz
        yield {"ph": "C", "name": "scratchpad bytes", "pid": 0, "ts": ts, "args": {"in use": size}}
