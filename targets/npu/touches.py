"""What each instruction reads and writes: the ranges of bytes that order it among the others."""

from __future__ import annotations

from typing import NamedTuple

from graphopt.targets.npu.isa import (
    ACCUMULATE,
    ACTIVATIONS,
    BROADCAST_B,
    CONSTANTS,
    PACKED,
    PARAMETER_BYTES,
    RAW_OUTPUT,
    Add,
    Exec,
    Fill,
    Load,
    Lookup,
    Pool,
    Requant,
    Store,
    Unpack,
    Word,
)

SCRATCHPAD, ACCUMULATORS, DRAM_CONSTANTS, DRAM_ACTIVATIONS = range(4)
MEMORIES = ("scratchpad", "accumulators", "constants", "activations")
DRAM = {CONSTANTS: DRAM_CONSTANTS, ACTIVATIONS: DRAM_ACTIVATIONS}


class Touch(NamedTuple):
    """The smallest range of bytes [start, end) of a memory that holds what an instruction reads or writes there."""

    memory: int
    start: int
    end: int
    write: bool


def touches(i: Word) -> list[Touch]:
    """Every range that `i` may read or write."""
    if isinstance(i, Fill):
        return [_pad(i, write=True)]
    if isinstance(i, Load):
        to_pad = not isinstance(i, Store)
        end = i.dram + extent(i.size, (i.planes, i.dram_plane_stride), (i.rows, i.dram_row_stride))
        return [Touch(DRAM.get(i.space, DRAM_CONSTANTS), i.dram, end, not to_pad), _pad(i, write=to_pad)]
    if isinstance(i, Unpack):
        return [
            Touch(DRAM_CONSTANTS, i.dram, i.dram + i.packed, False),
            Touch(SCRATCHPAD, i.pad, i.pad + i.size, True),
        ]
    if isinstance(i, Exec):
        return _exec(i)
    if isinstance(i, Requant):
        size = 4 if i.flags & RAW_OUTPUT else 1
        axes = ((i.channels, i.channel_stride), (i.rows, i.row_stride), (i.columns, i.column_stride))
        return [
            Touch(ACCUMULATORS, i.acc, i.acc + 4 * i.channels * i.rows * i.columns, False),
            Touch(SCRATCHPAD, i.parameters, i.parameters + PARAMETER_BYTES * i.channels, False),
            Touch(SCRATCHPAD, i.pad, i.pad + extent(size, *axes), True),
        ]
    if isinstance(i, Add):
        b_columns = 1 if i.flags & BROADCAST_B else i.columns
        blocks = (
            (i.a, i.columns, i.a_plane_stride, i.a_row_stride),
            (i.b, b_columns, i.b_plane_stride, i.b_row_stride),
            (i.pad, i.columns, i.plane_stride, i.row_stride),
        )
        return [
            Touch(SCRATCHPAD, at, at + extent(columns, (i.planes, plane), (i.rows, row)), number == 2)
            for number, (at, columns, plane, row) in enumerate(blocks)
        ]
    if isinstance(i, Lookup):
        read = ((i.planes, i.input_plane_stride), (i.rows, i.input_row_stride), (i.columns, i.input_column_stride))
        write = ((i.planes, i.plane_stride), (i.rows, i.row_stride), (i.columns, i.column_stride))
        return [
            Touch(SCRATCHPAD, i.input, i.input + extent(1, *read), False),
            Touch(SCRATCHPAD, i.table, i.table + 256, False),
            Touch(SCRATCHPAD, i.pad, i.pad + extent(1, *write), True),
        ]
    if isinstance(i, Pool):
        rows, columns = (i.oh - 1) * i.row_step + i.kh, (i.ow - 1) * i.column_step + i.kw
        window = extent(columns, (i.planes, i.input_plane_stride), (rows, i.input_row_stride))
        result = extent(i.ow, (i.planes, i.plane_stride), (i.oh, i.row_stride))
        return [
            Touch(SCRATCHPAD, i.input, i.input + window, False),
            Touch(SCRATCHPAD, i.pad, i.pad + result, True),
        ]
    return []


def _exec(i: Exec) -> list[Touch]:
    window = extent(
        1,
        (i.groups * i.cin, i.channel_stride),
        (i.oh, i.row_stride),
        (i.ow, i.column_stride),
        (i.kh, i.kernel_row_stride),
        (i.kw, i.kernel_column_stride),
    )
    acc = Touch(ACCUMULATORS, i.acc, i.acc + 4 * i.groups * i.oc * i.oh * i.ow, True)
    return [
        Touch(SCRATCHPAD, i.input, i.input + window, False),
        Touch(SCRATCHPAD, i.weights, i.weights + weight_bytes(i), False),
        *([acc._replace(write=False)] if i.flags & ACCUMULATE else []),
        acc,
    ]


def weight_bytes(i: Exec) -> int:
    """Bytes of the weights of a window."""
    count = i.groups * i.oc * i.cin * i.kh * i.kw
    return (count + 1) // 2 if i.flags & PACKED else count


def _pad(i: Fill | Load, *, write: bool) -> Touch:
    end = i.pad + extent(i.size, (i.planes, i.plane_stride), (i.rows, i.row_stride))
    return Touch(SCRATCHPAD, i.pad, end, write)


def extent(size: int, *axes: tuple[int, int]) -> int:
    """Bytes from the first to behind the last one of a strided block; `axes` are (count, stride)."""
    for count, stride in axes:
        if not count:
            return 0
        size += (count - 1) * stride
    return size
