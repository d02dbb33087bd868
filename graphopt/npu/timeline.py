"""A Chrome trace (Perfetto, chrome://tracing): a row per queue of the NPU, its scratchpad, the CPU's kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from graphopt.npu.beside import Call
from graphopt.targets.npu.isa import QUEUES, queue_of
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.occupancy import occupancy
from graphopt.targets.npu.profile import owners
from graphopt.targets.npu.stream import Stream
from graphopt.targets.npu.timing import schedule

Event = dict[str, Any]


def trace(streams: Sequence[Stream], machine: Machine, calls: Sequence[Call] | None = None) -> dict[str, Any]:
    """The document; times are microseconds. Streams, at the machine's clock, run one after the other; with the `calls`
    of a run, in its order between the CPU's kernels, which have a process of their own (1) and their measured times.
    """
    events: list[Event] = [{"ph": "M", "name": "process_name", "pid": 0, "args": {"name": machine.name}}]
    events += [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": tid, "args": {"name": name}}
        for tid, name in enumerate(QUEUES)
    ]
    if calls is not None:
        events.append({"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "CPU (measured on this machine)"}})
    order = range(len(streams)) if calls is None else calls
    now = 0.0
    for item in order:
        number = item if isinstance(item, int) else item.stream
        if number is None:
            assert isinstance(item, Call)
            events.append(_kernel(item, now))
            now += item.ms * 1e3
            continue
        stream = streams[number]
        events += _words(stream, machine, now)
        now += schedule(stream, machine).cycles / machine.clock_mhz
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _kernel(call: Call, ts: float) -> Event:
    args = {"nodes": call.nodes}
    return {
        "ph": "X",
        "name": call.name,
        "cat": "cpu",
        "pid": 1,
        "tid": 0,
        "ts": ts,
        "dur": call.ms * 1e3,
        "args": args,
    }


def _words(stream: Stream, machine: Machine, before: float) -> Iterator[Event]:
    """The words of a stream that starts `before` microseconds from the first."""
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
            "ts": before + plan.start[number] / machine.clock_mhz,
            "dur": (plan.finish[number] - plan.start[number]) / machine.clock_mhz,
            "args": {"word": number, "cycle": plan.start[number]},
        }
    for cycle, size in occupancy(stream, machine):
        ts = before + cycle / machine.clock_mhz
        yield {"ph": "C", "name": "scratchpad bytes", "pid": 0, "ts": ts, "args": {"in use": size}}
