"""The functional simulator: interprets decoded instructions on a scratchpad and accumulators made of bytes.

Arithmetic is that of the instruction set, exactly. Products run as float32 matrix products over slices of the
reduction so short that every partial sum is an integer of at most 2^24, which float32 holds exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError
from graphopt.targets.npu.isa import (
    ACCUMULATE,
    RAW_OUTPUT,
    SIGNED_INPUT,
    SIGNED_OUTPUT,
    SIGNED_WEIGHT,
    Exec,
    Fill,
    Load,
    Store,
    Vector,
)
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.numerics import RECORD, Mode, requantise
from graphopt.targets.npu.stream import Stream

Array = np.ndarray[Any, Any]
EXACT = 1 << 24  # every integer up to here is a float32


def run_stream(stream: Stream, machine: Machine, spaces: Sequence[Array]) -> None:
    """Execute `stream`. `spaces`: uint8 arrays for constants, input and output; only the output is written.

    Raises:
        ArtifactError: the stream is for another machine, a space has another size than it was made for, or an
            instruction touches bytes outside a memory.
    """
    if stream.machine != machine.digest():
        raise ArtifactError(
            f"the command stream of {stream.node!r} was made for another machine than {machine.name!r}: compile the "
            "model for this machine."
        )
    if tuple(space.nbytes for space in spaces) != stream.sizes:
        raise ArtifactError(
            f"the command stream of {stream.node!r} is for spaces of {stream.sizes} bytes, not "
            f"{tuple(space.nbytes for space in spaces)}."
        )
    core = Core(machine, spaces)
    for number, instruction in enumerate(stream.instructions):
        try:
            core.step(instruction)
        except (ValueError, TypeError, IndexError) as error:  # numpy's: a view does not fit its buffer
            raise ArtifactError(
                f"instruction {number} of the command stream of {stream.node!r} touches bytes outside a memory: "
                f"{instruction} ({error})."
            ) from error


class Core:
    """The machine's state: scratchpad and accumulators (they start as 0xA5, never as zeros), and the DRAM spaces."""

    def __init__(self, machine: Machine, spaces: Sequence[Array]) -> None:
        self.mode: Mode = machine.requantise
        self.pad = np.full(machine.scratchpad_bytes, 0xA5, np.uint8)
        self.acc = np.full(machine.accumulator_bytes, 0xA5, np.uint8)
        self.spaces = spaces

    def step(self, instruction: object) -> None:
        """Execute one instruction. Raises `ValueError` when it reaches outside a memory."""
        if isinstance(instruction, Exec):
            self._exec(instruction)
        elif isinstance(instruction, Vector):
            self._vector(instruction)
        elif isinstance(instruction, Load):
            self._pad_block(instruction)[...] = self._dram_block(instruction)
        elif isinstance(instruction, Store):
            self._dram_block(instruction)[...] = self._pad_block(instruction)
        elif isinstance(instruction, Fill):
            self._pad_block(instruction)[...] = np.uint8(instruction.value)

    def _pad_block(self, i: Fill | Load | Store) -> Array:
        shape, strides = (i.planes, i.rows, i.size), (i.plane_stride, i.row_stride, 1)
        return np.ndarray(shape, np.uint8, self.pad, i.pad, strides)

    def _dram_block(self, i: Load | Store) -> Array:
        shape, strides = (i.planes, i.rows, i.size), (i.dram_plane_stride, i.dram_row_stride, 1)
        return np.ndarray(shape, np.uint8, self.spaces[i.space], i.dram, strides)

    def _exec(self, i: Exec) -> None:
        x_type = np.int8 if i.flags & SIGNED_INPUT else np.uint8
        w_type = np.int8 if i.flags & SIGNED_WEIGHT else np.uint8
        x_zero, w_zero = _as(x_type, i.input_zero), _as(w_type, i.weight_zero)
        k, positions = i.cin * i.kh * i.kw, i.oh * i.ow
        group = i.cin * i.channel_stride
        strides = (group, i.channel_stride, i.kernel_row_stride, i.kernel_column_stride, i.row_stride, i.column_stride)
        view = np.ndarray((i.groups, i.cin, i.kh, i.kw, i.oh, i.ow), x_type, self.pad, i.input, strides)
        x = view.astype(np.float32, order="C").reshape(i.groups, k, positions)
        w = np.ndarray((i.groups, i.oc, k), w_type, self.pad, i.weights).astype(np.float32)
        if x_zero:
            x -= np.float32(x_zero)
        if w_zero:
            w -= np.float32(w_zero)
        acc = np.ndarray((i.groups, i.oc, positions), np.int32, self.acc, i.acc)
        total = multiply(x, w, EXACT // (_reach(x_type, x_zero) * _reach(w_type, w_zero)))
        if i.flags & ACCUMULATE:
            acc += total
        else:
            acc[...] = total

    def _vector(self, i: Vector) -> None:
        acc = np.ndarray((i.channels, i.positions), np.int32, self.acc, i.acc)
        records = np.ndarray((i.channels,), RECORD, self.pad, i.parameters)
        if i.flags & RAW_OUTPUT:
            out = np.ndarray(acc.shape, np.int32, self.pad, i.pad, (i.channel_stride, i.position_stride))
            out[...] = acc + records["bias"][:, None]
            return
        dtype = np.int8 if i.flags & SIGNED_OUTPUT else np.uint8
        out = np.ndarray((i.channels, i.positions), dtype, self.pad, i.pad, (i.channel_stride, i.position_stride))
        out[...] = requantise(acc, records, self.mode, i.zero, i.low, i.high).astype(dtype)


def multiply(x: Array, w: Array, depth: int) -> Array:
    """``w @ x`` per group in int32 that wraps; float32 holds it exactly for `depth` terms at a time.

    x: (groups, k, positions), w: (groups, oc, k), both float32 integers; returns (groups, oc, positions).
    """
    groups, k, positions = x.shape
    total = np.zeros((groups, w.shape[1], positions), np.int32)
    for start in range(0, k, depth):
        part = slice(start, start + depth)
        if w.shape[1] == 1 and groups > 1:  # depthwise: multiplying elementwise beats a product per group
            total += _scaled_sum(x[:, part], w[:, 0, part])[:, None].astype(np.int32)
        else:
            total += np.matmul(w[:, :, part], x[:, part]).astype(np.int32)
    return total


def _scaled_sum(x: Array, w: Array) -> Array:
    """Sum over k of x[:, k] * w[:, k]: (groups, positions)."""
    total = x[:, 0] * w[:, :1]
    for k in range(1, x.shape[1]):
        total += x[:, k] * w[:, k : k + 1]
    return total


def _as(dtype: type[np.generic], byte: int) -> int:
    return byte - 256 if dtype is np.int8 and byte > 127 else byte


def _reach(dtype: type[np.generic], zero: int) -> int:
    """The largest magnitude of a value of `dtype` less `zero`."""
    low, high = (-128, 127) if dtype is np.int8 else (0, 255)
    return max(high - zero, zero - low)
