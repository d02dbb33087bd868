"""The instruction set: fixed words of 64 bytes, one frozen dataclass per instruction, and what each one touches.

The machine has a byte-addressed scratchpad, an accumulator memory of int32 (byte-addressed too), and three DRAM
spaces per command stream: `CONSTANTS` (weights, parameters), `INPUT` and `OUTPUT`. All fields are little-endian;
addresses, strides and sizes are in bytes unless a docstring says elements.

* ``fill``   writes `value` to a strided 3-D block of the scratchpad: padding is the input's zero point.
* ``load``   copies a strided 3-D block from a DRAM space to the scratchpad; its rows are contiguous bytes.
* ``exec``   multiplies and accumulates (the array)::

      acc[g, o, y, x] (+)= sum over c, i, j of
          (input[g*cin + c, y*row + i*kernel_row, x*column + j*kernel_column] - input_zero)
          * (weight[g, o, c, i, j] - weight_zero)

  in int32 that wraps around. `acc` is dense over (groups, oc, oh, ow), weights dense over (groups, oc, cin, kh, kw).
  A matrix product is the window with kh = kw = 1 whose column stride is the length of a row.
* ``vector`` requantises `channels` x `positions` accumulators to 8 bits; `parameters` holds one record of 12 bytes
  per channel (int32 bias, 4-byte multiplier, int32 shift); see `graphopt.targets.npu.numerics`.
* ``store``  copies a strided 3-D block from the scratchpad to the output space.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import ClassVar

WORD = 64
CONSTANTS, INPUT, OUTPUT = 0, 1, 2
PARAMETER_BYTES = 12
ACCUMULATE, SIGNED_INPUT, SIGNED_WEIGHT, SIGNED_OUTPUT, RAW_OUTPUT = 1, 2, 4, 8, 16
"""Flags: `exec` adds to what the accumulators hold instead of overwriting it; how 8-bit values are read and written;
`vector` adds the bias only and writes int32."""


@dataclasses.dataclass(frozen=True)
class Fill:
    """Write `value` to planes x rows x size bytes of the scratchpad."""

    MNEMONIC: ClassVar[str] = "fill"
    FORMAT: ClassVar[str] = "<x7I"
    value: int
    pad: int
    planes: int
    rows: int
    size: int
    plane_stride: int
    row_stride: int


@dataclasses.dataclass(frozen=True)
class Load:
    """Copy planes x rows x size bytes from DRAM `space` at `dram` to the scratchpad at `pad`."""

    MNEMONIC: ClassVar[str] = "load"
    FORMAT: ClassVar[str] = "<x10I"
    space: int
    dram: int
    pad: int
    planes: int
    rows: int
    size: int
    dram_plane_stride: int
    dram_row_stride: int
    plane_stride: int
    row_stride: int


@dataclasses.dataclass(frozen=True)
class Store:
    """Copy planes x rows x size bytes from the scratchpad at `pad` to DRAM `space` at `dram`."""

    MNEMONIC: ClassVar[str] = "store"
    FORMAT: ClassVar[str] = "<x10I"
    space: int
    dram: int
    pad: int
    planes: int
    rows: int
    size: int
    dram_plane_stride: int
    dram_row_stride: int
    plane_stride: int
    row_stride: int


@dataclasses.dataclass(frozen=True)
class Exec:
    """Multiply a window of the input by weights into accumulators; zero points are the bytes of the operand."""

    MNEMONIC: ClassVar[str] = "exec"
    FORMAT: ClassVar[str] = "<x3B8I2H5I"
    flags: int
    input_zero: int
    weight_zero: int
    input: int
    weights: int
    acc: int
    groups: int
    cin: int
    oc: int
    oh: int
    ow: int
    kh: int
    kw: int
    channel_stride: int
    row_stride: int
    column_stride: int
    kernel_row_stride: int
    kernel_column_stride: int


@dataclasses.dataclass(frozen=True)
class Vector:
    """Requantise accumulators: add bias, scale, add `zero`, clamp to [low, high], write. Strides are in bytes."""

    MNEMONIC: ClassVar[str] = "vector"
    FORMAT: ClassVar[str] = "<xB3h7I"
    flags: int
    zero: int
    low: int
    high: int
    acc: int
    parameters: int
    pad: int
    channels: int
    positions: int
    channel_stride: int
    position_stride: int


@dataclasses.dataclass(frozen=True)
class End:
    """The last word of a stream."""

    MNEMONIC: ClassVar[str] = "end"
    FORMAT: ClassVar[str] = "<x"


Instruction = Fill | Load | Store | Exec | Vector | End
KINDS: dict[int, type[Instruction]] = {0: End, 1: Fill, 2: Load, 3: Exec, 4: Vector, 5: Store}
OPCODES = {kind: opcode for opcode, kind in KINDS.items()}


def encode(instruction: Instruction) -> bytes:
    """The instruction as one word. Raises `struct.error` when a field does not fit."""
    kind = type(instruction)
    body = struct.pack(kind.FORMAT, *(getattr(instruction, field.name) for field in dataclasses.fields(kind)))
    return bytes([OPCODES[kind]]) + body[1:].ljust(WORD - 1, b"\0")


def decode(word: bytes) -> Instruction:
    """The instruction in a word of 64 bytes. Raises `ValueError` on an unknown opcode or bits set outside fields."""
    kind = KINDS.get(word[0])
    if kind is None:
        raise ValueError(f"unknown opcode {word[0]}")
    size = struct.calcsize(kind.FORMAT)
    if any(word[size:]):
        raise ValueError(f"bits set outside the fields of {kind.MNEMONIC}")
    return kind(*struct.unpack(kind.FORMAT, word[:size]))


@dataclasses.dataclass(frozen=True)
class Touch:
    """A range of bytes [start, end) of a memory that an instruction reads or writes."""

    memory: str  # "scratchpad", "accumulator", or "space 0".."space 2"
    start: int
    end: int
    write: bool


def touches(instruction: Instruction) -> list[Touch]:
    """The smallest ranges that hold every byte `instruction` may read or write."""
    i = instruction
    if isinstance(i, Fill):
        return [_pad(i, write=True)]
    if isinstance(i, Load | Store):
        to_pad = isinstance(i, Load)
        end = i.dram + _extent(i.size, (i.planes, i.dram_plane_stride), (i.rows, i.dram_row_stride))
        return [Touch(f"space {i.space}", i.dram, end, not to_pad), _pad(i, write=to_pad)]
    if isinstance(i, Exec):
        window = _extent(
            1,
            (i.groups * i.cin, i.channel_stride),
            (i.oh, i.row_stride),
            (i.ow, i.column_stride),
            (i.kh, i.kernel_row_stride),
            (i.kw, i.kernel_column_stride),
        )
        weights = i.groups * i.oc * i.cin * i.kh * i.kw
        return [
            Touch("scratchpad", i.input, i.input + window, False),
            Touch("scratchpad", i.weights, i.weights + weights, False),
            Touch("accumulator", i.acc, i.acc + 4 * i.groups * i.oc * i.oh * i.ow, True),
        ]
    if isinstance(i, Vector):
        out = _extent(
            4 if i.flags & RAW_OUTPUT else 1, (i.channels, i.channel_stride), (i.positions, i.position_stride)
        )
        return [
            Touch("accumulator", i.acc, i.acc + 4 * i.channels * i.positions, False),
            Touch("scratchpad", i.parameters, i.parameters + PARAMETER_BYTES * i.channels, False),
            Touch("scratchpad", i.pad, i.pad + out, True),
        ]
    return []


def _pad(i: Fill | Load | Store, *, write: bool) -> Touch:
    end = i.pad + _extent(i.size, (i.planes, i.plane_stride), (i.rows, i.row_stride))
    return Touch("scratchpad", i.pad, end, write)


def _extent(size: int, *axes: tuple[int, int]) -> int:
    """Bytes from the first to behind the last one of a strided block; `axes` are (count, stride)."""
    if size == 0 or any(count == 0 for count, _ in axes):
        return 0
    return size + sum((count - 1) * stride for count, stride in axes)
