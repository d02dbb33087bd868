"""The instruction set: fixed words of 64 bytes, one frozen dataclass per instruction, and what each one touches.

The machine has a byte-addressed scratchpad, an accumulator memory of int32 (byte-addressed too), and two DRAM spaces:
`CONSTANTS` (weights, parameters, tables) and `ACTIVATIONS` (inputs, outputs, and what lies between). Words go to five
queues of four engines in the order of the stream: `CONSTANTS` and `ACTIVATIONS` loads, `EXECUTE`, `VECTOR`, `STORE`.
Queues run beside each other. Between each two of them counts a semaphore: a word starts when its queue's earlier words
have started and finished as its engine demands, and each queue named in `wait` has given that many tokens more; when it
has finished, it gives the tokens in `signal`. Both hold 3 bits for each queue: up to 7 tokens.

All fields are little-endian; addresses, strides and sizes are in bytes. Zero points, `low`, `high` and `zero` are the
bytes of the operand. Planes are channels of an image; a matrix is one plane.

* ``fill``    writes `value` to a strided 3-D block of the scratchpad: padding is the input's zero point.
* ``load``    copies a strided 3-D block from a DRAM space to the scratchpad; its rows are contiguous bytes.
* ``unpack``  decodes `size` bytes of weights from `packed` bytes of `CONSTANTS`: see `graphopt.targets.npu.weights`.
* ``store``   copies a strided 3-D block from the scratchpad to `ACTIVATIONS`.
* ``exec``    multiplies and accumulates (the array)::

      acc[g, o, y, x] (+)= sum over c, i, j of
          (input[g*cin + c, y*row + i*kernel_row, x*column + j*kernel_column] - input_zero)
          * (weight[g, o, c, i, j] - weight_zero)

  in int32 that wraps around. `acc` is dense over (groups, oc, oh, ow), weights dense over (groups, oc, cin, kh, kw);
  with `PACKED` they have 4 bits each, the first of two in the low ones. A depthwise layer has cin = oc = 1. A matrix
  product is the window with kh = kw = 1 whose column stride is the length of a row.
* ``requant`` takes channels x rows x columns accumulators to 8 bits; `parameters` holds one record of 12 bytes per
  channel (int32 bias, 4-byte multiplier, int32 shift); see `graphopt.targets.npu.numerics`.
* ``add``     y = clamp(round((a - a_zero) * a_scale + (b - b_zero) * b_scale) + zero, low, high)
* ``mul``     y = clamp(round(((a - a_zero) * a_scale) * ((b - b_zero) * b_scale)) + zero, low, high)
* ``lookup``  y = table[x], 256 bytes; with strides it moves, and repeats.
* ``pool``    the maximum of a window, or its sum less the zero points, rescaled and divided by kh * kw.
* ``fence``   nothing after it starts before everything before it has finished.
* ``end``     the last word.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import ClassVar

WORD = 64
CONSTANTS, ACTIVATIONS = 0, 1
QUEUES = ("constants", "load", "exec", "vector", "store")
LOAD_CONSTANTS, LOAD, EXECUTE, VECTOR, STORE = range(5)
TOKENS = 7
"""The most tokens of one queue that a word can wait for, or give."""
PARAMETER_BYTES = 12
ACCUMULATE, SIGNED_INPUT, SIGNED_WEIGHT, SIGNED_OUTPUT, RAW_OUTPUT, PACKED = 1, 2, 4, 8, 16, 32
SIGNED_B, BROADCAST_B, MAXIMUM = 64, 128, 1
"""Flags: `exec` adds to what the accumulators hold instead of overwriting it; how 8-bit values are read and written;
`requant` adds the bias only and writes int32; 4-bit weights; the second operand is signed, is one value for each row
(its rows hold one byte); a pool takes the maximum."""
HEADER = struct.Struct("<BBHH")  # opcode, flags, wait, signal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Word:
    """What all instructions have: tokens taken before the start and given after the end, 3 bits for each queue."""

    MNEMONIC: ClassVar[str]
    FORMAT: ClassVar[str] = ""
    flags: int = 0
    wait: int = 0
    signal: int = 0


@dataclasses.dataclass(frozen=True)
class Fill(Word):
    """Write `value` to planes x rows x size bytes of the scratchpad."""

    MNEMONIC: ClassVar[str] = "fill"
    FORMAT: ClassVar[str] = "7I"
    value: int
    pad: int
    planes: int
    rows: int
    size: int
    plane_stride: int
    row_stride: int


@dataclasses.dataclass(frozen=True)
class Load(Word):
    """Copy planes x rows x size bytes from DRAM `space` at `dram` to the scratchpad at `pad`."""

    MNEMONIC: ClassVar[str] = "load"
    FORMAT: ClassVar[str] = "10I"
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
class Store(Load):
    """Copy planes x rows x size bytes from the scratchpad at `pad` to DRAM `space` at `dram`."""

    MNEMONIC: ClassVar[str] = "store"


@dataclasses.dataclass(frozen=True)
class Unpack(Word):
    """Decode `size` weights from the `packed` bytes of `CONSTANTS` at `dram` to the scratchpad at `pad`."""

    MNEMONIC: ClassVar[str] = "unpack"
    FORMAT: ClassVar[str] = "4I"
    dram: int
    pad: int
    packed: int
    size: int


@dataclasses.dataclass(frozen=True)
class Exec(Word):
    """Multiply a window of the input by weights into accumulators."""

    MNEMONIC: ClassVar[str] = "exec"
    FORMAT: ClassVar[str] = "2B8I2H5I"
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
class Requant(Word):
    """Requantise accumulators: add bias, scale, add `zero`, clamp to [low, high], write."""

    MNEMONIC: ClassVar[str] = "requant"
    FORMAT: ClassVar[str] = "3B9I"
    zero: int
    low: int
    high: int
    acc: int
    parameters: int
    pad: int
    channels: int
    rows: int
    columns: int
    channel_stride: int
    row_stride: int
    column_stride: int


@dataclasses.dataclass(frozen=True)
class Add(Word):
    """The sum of two blocks of planes x rows x columns; scales and shift as in `numerics.pack_pair`."""

    MNEMONIC: ClassVar[str] = "add"
    FORMAT: ClassVar[str] = "4I2H6I2I6B"
    a: int
    b: int
    pad: int
    planes: int
    rows: int
    columns: int
    a_plane_stride: int
    a_row_stride: int
    b_plane_stride: int
    b_row_stride: int
    plane_stride: int
    row_stride: int
    a_scale: int
    b_scale: int
    shift: int
    a_zero: int
    b_zero: int
    zero: int
    low: int
    high: int


@dataclasses.dataclass(frozen=True)
class Mul(Add):
    """The product of two blocks of planes x rows x columns."""

    MNEMONIC: ClassVar[str] = "mul"


@dataclasses.dataclass(frozen=True)
class Lookup(Word):
    """Look planes x rows x columns bytes up in a table of 256."""

    MNEMONIC: ClassVar[str] = "lookup"
    FORMAT: ClassVar[str] = "4I2H6I"
    input: int
    table: int
    pad: int
    planes: int
    rows: int
    columns: int
    input_plane_stride: int
    input_row_stride: int
    input_column_stride: int
    plane_stride: int
    row_stride: int
    column_stride: int


@dataclasses.dataclass(frozen=True)
class Pool(Word):
    """Windows of kh x kw over planes of the input, to planes x oh x ow bytes."""

    MNEMONIC: ClassVar[str] = "pool"
    FORMAT: ClassVar[str] = "3I6H4II5B"
    input: int
    pad: int
    planes: int
    oh: int
    ow: int
    kh: int
    kw: int
    row_step: int
    column_step: int
    input_plane_stride: int
    input_row_stride: int
    plane_stride: int
    row_stride: int
    scale: int
    shift: int
    input_zero: int
    zero: int
    low: int
    high: int


@dataclasses.dataclass(frozen=True)
class Fence(Word):
    """Nothing after it starts before everything before it has finished."""

    MNEMONIC: ClassVar[str] = "fence"


@dataclasses.dataclass(frozen=True)
class End(Word):
    """The last word of a stream."""

    MNEMONIC: ClassVar[str] = "end"


Instruction = Word
KINDS: dict[int, type[Word]] = dict(
    enumerate((End, Fill, Load, Exec, Requant, Store, Add, Mul, Lookup, Pool, Fence, Unpack))
)
OPCODES = {kind: opcode for opcode, kind in KINDS.items()}
FIELDS: dict[type[Word], tuple[str, ...]] = {
    kind: tuple(f.name for f in dataclasses.fields(kind) if f.name not in ("flags", "wait", "signal"))
    for kind in OPCODES
}
BODIES = {kind: struct.Struct("<" + kind.FORMAT) for kind in OPCODES}
QUEUE_OF: dict[type[Word], int] = {
    Fill: LOAD, Unpack: LOAD_CONSTANTS, Exec: EXECUTE, Store: STORE,
    Requant: VECTOR, Add: VECTOR, Mul: VECTOR, Lookup: VECTOR, Pool: VECTOR,
}  # fmt: skip


def queue_of(word: Word) -> int | None:
    """The queue that `word` goes to; None for fence and end, which go to none."""
    if type(word) is Load:
        return LOAD_CONSTANTS if word.space == CONSTANTS else LOAD
    return QUEUE_OF.get(type(word))


def tokens(bits: int) -> tuple[int, ...]:
    """The counts in a word's `wait` or `signal`, one for each queue."""
    return tuple(bits >> 3 * queue & TOKENS for queue in range(len(QUEUES)))


def encode(word: Word) -> bytes:
    """The instruction as one word. Raises `struct.error` when a field does not fit."""
    kind = type(word)
    body = BODIES[kind].pack(*(getattr(word, name) for name in FIELDS[kind]))
    return (HEADER.pack(OPCODES[kind], word.flags, word.wait, word.signal) + body).ljust(WORD, b"\0")


def decode(word: bytes) -> Word:
    """The instruction in a word of 64 bytes. Raises `ValueError` on an unknown opcode or bits set outside fields."""
    opcode, flags, wait, signal = HEADER.unpack_from(word)
    kind = KINDS.get(opcode)
    if kind is None:
        raise ValueError(f"unknown opcode {opcode}")
    body = BODIES[kind]
    if any(word[HEADER.size + body.size :]) or (wait | signal) >> 3 * len(QUEUES):
        raise ValueError(f"bits set outside the fields of {kind.MNEMONIC}")
    return kind(*body.unpack_from(word, HEADER.size), flags=flags, wait=wait, signal=signal)
