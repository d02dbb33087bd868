"""When each instruction of a stream starts and ends: decoupled engines with interlocks.

Engines (one load queue per memory, array, vector unit, store queue) work through their instructions in order and
beside each other. An instruction starts when its engine is free and every earlier instruction that touches an
overlapping range of scratchpad or accumulators, one of the two writing, has ended. A memory has one port that
transfers share: one that comes earlier in the stream goes first, later ones fill the gaps it leaves. Latency delays
a transfer's end but not the next one's start.
"""

from __future__ import annotations

import bisect
import dataclasses
from typing import ClassVar

from graphopt.targets.npu import cycles
from graphopt.targets.npu.isa import CONSTANTS, Exec, Fill, Instruction, Load, Store, Touch, Vector, touches
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


def time_stream(stream: Stream, machine: Machine) -> Timing:
    """Simulate the events of `stream` on `machine`."""
    clock = _Clock()
    read = {"constants": 0, "activations": 0}
    written = macs = 0
    for instruction in stream.instructions:
        engine, memory, duration = _work(instruction, machine)
        clock.issue(instruction, engine, memory, duration)
        if isinstance(instruction, Load):
            space = "constants" if instruction.space == CONSTANTS else "activations"
            read[space] += instruction.planes * instruction.rows * instruction.size
        elif isinstance(instruction, Store):
            written += instruction.planes * instruction.rows * instruction.size
        elif isinstance(instruction, Exec):
            macs += cycles.macs(instruction)
    return Timing(clock.end, macs, clock.busy, read, written)


def _work(instruction: Instruction, machine: Machine) -> tuple[str, Memory | None, int]:
    """Engine, memory whose port is used, and cycles."""
    if isinstance(instruction, Load):
        memory = machine.memory("constants" if instruction.space == CONSTANTS else "activations")
        return f"load {memory.name}", memory, cycles.transfer_cycles(memory, instruction)
    if isinstance(instruction, Store):
        memory = machine.memory("activations")
        return "store", memory, cycles.transfer_cycles(memory, instruction)
    if isinstance(instruction, Fill):
        size = instruction.planes * instruction.rows * instruction.size
        return f"load {machine.memory('activations').name}", None, cycles.fill_cycles(machine, size)
    if isinstance(instruction, Exec):
        return "exec", None, cycles.exec_cycles(machine, instruction)
    if isinstance(instruction, Vector):
        return "vector", None, cycles.vector_cycles(machine, instruction.channels, instruction.positions)
    return "end", None, 0


class _Clock:
    """The time of every engine and port, and until when each range of bytes is in use."""

    def __init__(self) -> None:
        self.end = 0
        self.busy: dict[str, int] = {}
        self._free: dict[str, int] = {}
        self._ports: dict[str, _Port] = {}
        self._touched: dict[str, dict[tuple[int, int, bool], int]] = {"scratchpad": {}, "accumulator": {}}

    def issue(self, instruction: Instruction, engine: str, memory: Memory | None, duration: int) -> None:
        """Start `instruction` as early as engine, hazards and port allow."""
        touched = [touch for touch in touches(instruction) if not touch.memory.startswith("space")]
        start = self._free.get(engine, 0)
        for touch in touched:
            start = self._after_hazards(touch, start)
        latency = 0
        if memory is not None:
            port = f"port {memory.name}"
            start = self._ports.setdefault(port, _Port()).reserve(start, duration)
            self.busy[port] = self.busy.get(port, 0) + duration
            latency = memory.latency_cycles
        self._free[engine] = start + duration
        if duration:
            self.busy[engine] = self.busy.get(engine, 0) + duration
        finish = start + duration + latency
        self.end = max(self.end, finish)
        for touch in touched:
            users, key = self._touched[touch.memory], (touch.start, touch.end, touch.write)
            users[key] = max(finish, users.get(key, 0))

    def _after_hazards(self, touch: Touch, start: int) -> int:
        """The earliest time from `start` on when nobody uses the bytes of `touch` in a way that forbids it."""
        for (first, end, write), until in self._touched[touch.memory].items():
            if until > start and first < touch.end and touch.start < end and (write or touch.write):
                start = until
        return start


class _Port:
    """When a memory's port is taken. Only the last `KEPT` stretches are remembered; before them it counts as taken."""

    KEPT: ClassVar[int] = 64

    def __init__(self) -> None:
        self._taken: list[tuple[int, int]] = [(0, 0)]

    def reserve(self, earliest: int, duration: int) -> int:
        """Take the first gap of `duration` from `earliest` on; returns its start."""
        start = max(earliest, self._taken[0][1])
        place = bisect.bisect(self._taken, (start, start)) - 1
        start = max(start, self._taken[place][1])
        while place + 1 < len(self._taken) and self._taken[place + 1][0] < start + duration:
            place += 1
            start = max(start, self._taken[place][1])
        self._taken.insert(place + 1, (start, start + duration))
        if self._taken[place][1] == start:  # the stretch before grows
            self._taken[place : place + 2] = [(self._taken[place][0], start + duration)]
        del self._taken[: -self.KEPT]
        return start
