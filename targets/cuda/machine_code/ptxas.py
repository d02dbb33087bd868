"""What ptxas's verbose log says of each kernel: the static facts there are without a GPU."""

from __future__ import annotations

import dataclasses
import re

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_KERNEL = re.compile(r"_kernel(_\d+)?$")
_BARRIERS = re.compile(r"used (\d+) barriers")


@dataclasses.dataclass
class KernelUse:
    """Resources of one kernel: `registers` and `stack` bytes a thread, static `shared` bytes a block,
    bytes of code's spill stores and loads, and barriers."""

    name: str
    registers: int = 0
    shared: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    stack: int = 0
    barriers: int = 0

    @property
    def function(self) -> str:
        """The TIR function it was generated from; one function can give several kernels."""
        return _KERNEL.sub("", self.name)


def parse(log: str) -> list[KernelUse]:
    """The kernels of a log of ``ptxas -v``, in its order."""
    found: list[KernelUse] = []
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            found.append(KernelUse(entry[1]))
            continue
        if not found:
            continue
        kernel = found[-1]
        if spills := _SPILLS.search(line):
            kernel.stack, kernel.spill_stores, kernel.spill_loads = map(int, spills.groups())
        if registers := _REGISTERS.search(line):
            shared, barriers = _SHARED.search(line), _BARRIERS.search(line)
            kernel.registers = int(registers[1])
            kernel.shared = int(shared[1]) if shared else 0
            kernel.barriers = int(barriers[1]) if barriers else 0
    return found
