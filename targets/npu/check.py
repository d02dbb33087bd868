"""A static check of a stream, without data: everything in bounds, nothing read before it is written."""

from __future__ import annotations

import numpy as np

from graphopt.errors import LoweringError
from graphopt.targets.npu.isa import ACCUMULATE, RAW_OUTPUT, Exec, Fill, Instruction, Load, Store, Vector, touches
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.stream import Stream


def check(stream: Stream, machine: Machine) -> None:
    """Replay the stream on maps of which bytes hold a value.

    Raises:
        LoweringError: naming the instruction that leaves a memory, reads bytes nobody wrote, or writes where it
            must not; or that a byte of the output is not written exactly once.
    """
    written = {
        "scratchpad": np.zeros(machine.scratchpad_bytes, np.bool_),
        "accumulator": np.zeros(machine.accumulator_bytes, np.bool_),
        "space 0": np.ones(stream.sizes[0], np.bool_),
        "space 1": np.ones(stream.sizes[1], np.bool_),
    }
    stored = np.zeros(stream.sizes[2], np.uint8)
    for number, instruction in enumerate(stream.instructions):
        fault = _fault(instruction, written, stored)
        if fault:
            raise LoweringError(
                f"the command stream of {stream.node!r} is wrong at instruction {number}, {instruction}: {fault}."
            )
    if not (stored == 1).all():
        raise LoweringError(f"the command stream of {stream.node!r} does not write every output byte exactly once.")


def _fault(instruction: Instruction, written: dict[str, np.ndarray], stored: np.ndarray) -> str | None:
    for touch in touches(instruction):
        if touch.memory == "space 2":
            if not isinstance(instruction, Store) or touch.end > stored.size:
                return "it reaches outside the output"
            continue
        if touch.memory not in written or (touch.memory.startswith("space") and touch.write):
            return f"it must not use {touch.memory} so"
        valid = written[touch.memory]
        if touch.end > valid.size:
            return f"it reaches byte {touch.end} of the {valid.size} of {touch.memory}"
        reads = not touch.write or (isinstance(instruction, Exec) and bool(instruction.flags & ACCUMULATE))
        if reads and not valid[touch.start : touch.end].all():
            return f"it reads bytes of {touch.memory} that nobody wrote"
    _mark(instruction, written, stored)
    return None


def _mark(i: Instruction, written: dict[str, np.ndarray], stored: np.ndarray) -> None:
    """Note the bytes that `i` writes, byte by byte where they are strided."""
    pad = written["scratchpad"]
    if isinstance(i, Fill | Load):
        np.ndarray((i.planes, i.rows, i.size), np.bool_, pad, i.pad, (i.plane_stride, i.row_stride, 1))[...] = True
    elif isinstance(i, Exec):
        written["accumulator"][i.acc : i.acc + 4 * i.groups * i.oc * i.oh * i.ow] = True
    elif isinstance(i, Vector):
        shape, strides = (i.channels, i.positions), (i.channel_stride, i.position_stride)
        size = 4 if i.flags & RAW_OUTPUT else 1
        np.ndarray((*shape, size), np.bool_, pad, i.pad, (*strides, 1))[...] = True
    elif isinstance(i, Store):
        shape, strides = (i.planes, i.rows, i.size), (i.dram_plane_stride, i.dram_row_stride, 1)
        np.ndarray(shape, np.uint8, stored, i.dram, strides)[...] += 1
