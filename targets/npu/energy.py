"""Energy from counted events: multiply-accumulates, bytes through each memory, requantised elements.

Which bytes an array moves follows from its dataflow. For an (m x k) by (k x n) product on R rows and C columns, what
stays in place is read once and the others pass by once per fold::

                        input          weights        sums (4 bytes each, in and out of the accumulators)
    weight-stationary   m k ceil(n/C)  k n            m n (2 ceil(k/R) - 1)
    output-stationary   m k ceil(n/C)  k n ceil(m/R)  m n
    input-stationary    m k            k n ceil(m/C)  m n (2 ceil(k/R) - 1)

An array of dot products hands an input to all `channels` of a block, and weights to all positions of a window; it
adds to its accumulators once per step of `depth` input channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from graphopt.targets.npu.cycles import macs, systolic_ways
from graphopt.targets.npu.isa import CONSTANTS, RAW_OUTPUT, VECTOR, Exec, Fill, Load, Requant, Unpack, Word, queue_of
from graphopt.targets.npu.machine import DotProduct, Energy, Machine, Systolic
from graphopt.targets.npu.timing import moved


@dataclasses.dataclass
class Events:
    """How often what happens; `memory`: bytes to and from each memory outside, by its name."""

    macs: int = 0
    scratchpad: int = 0
    accumulator: int = 0
    vector: int = 0
    memory: dict[str, int] = dataclasses.field(default_factory=dict[str, int])


def count(instructions: Iterable[Word], machine: Machine) -> Events:
    """The events of a stream."""
    events = Events(memory=dict.fromkeys((memory.name for memory in machine.memories), 0))
    for i in instructions:
        if isinstance(i, Fill | Load):
            size = i.planes * i.rows * i.size
            events.scratchpad += size
            if not isinstance(i, Fill):
                space = "constants" if i.space == CONSTANTS else "activations"
                events.memory[machine.memory(space).name] += size
        elif isinstance(i, Unpack):
            events.scratchpad += i.size
            events.memory[machine.memory("constants").name] += i.packed
        elif isinstance(i, Exec):
            events.macs += macs(i)
            scratchpad, accumulator = array_bytes(machine.array, *product(i))
            events.scratchpad += i.groups * scratchpad
            events.accumulator += i.groups * accumulator
        elif isinstance(i, Requant):
            elements = i.channels * i.rows * i.columns
            events.vector += elements
            events.accumulator += 4 * elements
            events.scratchpad += elements * (4 if i.flags & RAW_OUTPUT else 1)
        elif queue_of(i) == VECTOR:
            taken, given = moved(i)
            events.vector += taken
            events.scratchpad += taken + given
    return events


def product(window: Exec) -> tuple[int, int, int]:
    """(m, n, k) of the matrix product that one group of a window is."""
    return window.oh * window.ow, window.oc, window.cin * window.kh * window.kw


def array_bytes(array: DotProduct | Systolic, m: int, n: int, k: int) -> tuple[int, int]:
    """Bytes an array reads from the scratchpad, and bytes between it and the accumulators, for one product."""
    if isinstance(array, DotProduct):
        return m * k * _up(n, array.channels) + k * n, 4 * m * n * (2 * _up(k, array.depth) - 1)
    rows, columns = array.rows, array.columns
    sums = 4 * m * n
    ways = systolic_ways(array, m, n, k)
    dataflow = min(ways, key=lambda way: ways[way])
    if dataflow == "output-stationary":
        return m * k * _up(n, columns) + k * n * _up(m, rows), sums
    if dataflow == "weight-stationary":
        return m * k * _up(n, columns) + k * n, sums * (2 * _up(k, rows) - 1)
    return m * k + k * n * _up(m, columns), sums * (2 * _up(k, rows) - 1)


def components(energy: Energy, events: Events) -> dict[str, float]:
    """Microjoules by component: "mac", "scratchpad", "accumulator", "vector" and each memory."""
    picojoules: Mapping[str, float] = {
        "mac": events.macs * energy.mac.pj,
        "scratchpad": events.scratchpad * energy.scratchpad.pj,
        "accumulator": events.accumulator * energy.accumulator.pj,
        "vector": events.vector * energy.vector.pj,
        **{name: size * energy.memory[name].pj for name, size in events.memory.items()},
    }
    return {name: value / 1e6 for name, value in picojoules.items()}


def _up(a: int, b: int) -> int:
    return -(-a // b)
