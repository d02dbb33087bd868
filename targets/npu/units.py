"""What each instruction computes, on numpy views of the machine's bytes.

Products run as float32 matrix products over slices of the reduction so short that every partial sum is an integer of
at most 2^24, which float32 holds exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.targets.npu import numerics
from graphopt.targets.npu.isa import (
    ACCUMULATE,
    BROADCAST_B,
    CONSTANTS,
    MAXIMUM,
    PACKED,
    RAW_OUTPUT,
    SIGNED_B,
    SIGNED_INPUT,
    SIGNED_OUTPUT,
    SIGNED_WEIGHT,
    Add,
    Exec,
    Fill,
    Load,
    Lookup,
    Mul,
    Pool,
    Requant,
    Store,
    Unpack,
    Word,
)
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.touches import touches, weight_bytes
from graphopt.targets.npu.weights import decode

Array = np.ndarray[Any, Any]
EXACT = 1 << 24  # every integer up to here is a float32
KEPT = 3  # operands made float that are kept


class Core:
    """The machine's state: scratchpad and accumulators (they start as 0xA5, never as zeros), and the DRAM spaces."""

    def __init__(self, machine: Machine, spaces: Sequence[Array]) -> None:
        self.mode: numerics.Mode = machine.requantise
        self.pad = np.full(machine.scratchpad_bytes, 0xA5, np.uint8)
        self.acc = np.full(machine.accumulator_bytes, 0xA5, np.uint8)
        self.spaces = spaces
        self._kept: list[tuple[int, int, object, Any]] = []  # operands of the array as float: bytes they came from

    def start(self, word: Word) -> tuple[Array, Array]:
        """Where `word` writes, and what; raises `ValueError` when it reaches outside a memory."""
        return _START[type(word)](self, word)

    def commit(self, word: Word, target: Array, values: Array) -> None:
        """The word has finished: its result is there."""
        if isinstance(word, Exec):
            if word.flags & ACCUMULATE:
                target += values.astype(np.int32)
            else:
                target[...] = values
            return
        target[...] = values
        if self._kept and not isinstance(word, Store):
            *_, (_, start, end, _) = touches(word)
            self._kept = [kept for kept in self._kept if kept[1] <= start or end <= kept[0]]

    def kept(self, start: int, end: int, key: object, make: Callable[[], Any]) -> Any:
        """What `make` makes of the bytes [start, end) of the scratchpad, until they are written."""
        for entry in self._kept:
            if entry[2] == key:
                return entry[3]
        made = make()
        self._kept = [*self._kept[-KEPT + 1 :], (start, end, key, made)]
        return made


def _load(core: Core, i: Load) -> tuple[Array, Array]:
    return _pad(core, i), _dram(core, i).copy()


def _unpack(core: Core, i: Unpack) -> tuple[Array, Array]:
    code = np.ndarray((i.packed,), np.uint8, core.spaces[CONSTANTS], i.dram)
    return np.ndarray((i.size,), np.uint8, core.pad, i.pad), decode(code, i.size)


def _store(core: Core, i: Store) -> tuple[Array, Array]:
    return _dram(core, i), _pad(core, i).copy()


def _fill(core: Core, i: Fill) -> tuple[Array, Array]:
    return _pad(core, i), np.array(i.value, np.uint8)


def _pad(core: Core, i: Fill | Load) -> Array:
    return np.ndarray((i.planes, i.rows, i.size), np.uint8, core.pad, i.pad, (i.plane_stride, i.row_stride, 1))


def _dram(core: Core, i: Load) -> Array:
    strides = (i.dram_plane_stride, i.dram_row_stride, 1)
    return np.ndarray((i.planes, i.rows, i.size), np.uint8, core.spaces[i.space], i.dram, strides)


def _exec(core: Core, i: Exec) -> tuple[Array, Array]:
    x_type = np.int8 if i.flags & SIGNED_INPUT else np.uint8
    x_zero, w_zero = _as(x_type, i.input_zero), _as(np.int8 if i.flags & SIGNED_WEIGHT else np.uint8, i.weight_zero)
    acc = np.ndarray((i.groups, i.oc, i.oh * i.ow), np.int32, core.acc, i.acc)
    end = i.weights + weight_bytes(i)
    shape = (i.groups, i.oc, i.cin * i.kh * i.kw)
    key = ("w", i.weights, shape, i.flags & (SIGNED_WEIGHT | PACKED), w_zero)
    w, row_sums, reach = core.kept(i.weights, end, key, lambda: _weights(core, i, shape, w_zero))
    largest = max(255 - x_zero, x_zero) if x_type is np.uint8 else max(127 - x_zero, x_zero + 128)
    exact = reach * (255 if x_type is np.uint8 else 128) <= EXACT  # so is every partial sum of values as they are
    if exact and i.oc == 1 and i.cin == 1 and i.groups > 1:
        total = _depthwise(core, i, x_type, w)
        total -= np.float32(x_zero) * row_sums
        return acc, total
    x = _columns(core, i, x_type)
    if exact:
        total = np.matmul(w, x)
        if x_zero:
            total = total.astype(np.int32)
            total -= (row_sums * np.float32(x_zero)).astype(np.int32)
        return acc, total
    if x_zero:
        x = x - np.float32(x_zero)
    total = np.zeros(acc.shape, np.int32)
    depth = max(EXACT // (largest * max(int(np.abs(w).max()), 1)), 1)
    for k in range(0, shape[2], depth):
        total += np.matmul(w[:, :, k : k + depth], x[:, k : k + depth]).astype(np.int32)
    return acc, total


def _weights(core: Core, i: Exec, shape: tuple[int, int, int], zero: int) -> tuple[Array, Array, float]:
    """Weights less their zero point as float32, their sums over the reduction, and the largest sum of magnitudes."""
    if i.flags & PACKED:
        packed = np.ndarray((weight_bytes(i),), np.uint8, core.pad, i.weights)
        values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[: shape[0] * shape[1] * shape[2]]
        w = (((values ^ 8).astype(np.float32) - 8) if i.flags & SIGNED_WEIGHT else values.astype(np.float32)).reshape(
            shape
        )
    else:
        dtype = np.int8 if i.flags & SIGNED_WEIGHT else np.uint8
        w = np.ndarray(shape, dtype, core.pad, i.weights).astype(np.float32)
    if zero:
        w -= np.float32(zero)
    return w, w.sum(axis=2, keepdims=True), float(np.abs(w).sum(axis=2).max())


def _columns(core: Core, i: Exec, dtype: type[np.generic]) -> Array:
    """The windows as float32 matrices (groups, cin * kh * kw, positions)."""
    group = i.cin * i.channel_stride
    strides = (group, i.channel_stride, i.kernel_row_stride, i.kernel_column_stride, i.row_stride, i.column_stride)
    shape = (i.groups, i.cin, i.kh, i.kw, i.oh, i.ow)
    source = touches(i)[0]

    def make() -> Array:
        view = np.ndarray(shape, dtype, core.pad, i.input, strides)
        if i.column_stride > i.channel_stride == 1 and i.oh == i.kh == i.kw == 1:  # rows of a matrix
            x = view[:, :, 0, 0, 0].transpose(0, 2, 1).astype(np.float32, order="C")
            return x.transpose(0, 2, 1)
        return view.astype(np.float32, order="C").reshape(i.groups, -1, i.oh * i.ow)

    return core.kept(source.start, source.end, ("x", i.input, shape, strides, dtype), make)


def _depthwise(core: Core, i: Exec, dtype: type[np.generic], w: Array) -> Array:
    """(groups, 1, positions): the taps one after the other, each for all groups and positions."""
    total = np.zeros((i.groups, i.oh, i.ow), np.float32)
    part = np.empty_like(total)
    for row in range(i.kh):
        for column in range(i.kw):
            at = i.input + row * i.kernel_row_stride + column * i.kernel_column_stride
            strides = (i.channel_stride, i.row_stride, i.column_stride)
            np.multiply(
                np.ndarray(total.shape, dtype, core.pad, at, strides), w[:, :, row * i.kw + column, None], out=part
            )
            total += part
    return total.reshape(i.groups, 1, -1)


def _requant(core: Core, i: Requant) -> tuple[Array, Array]:
    acc = np.ndarray((i.channels, i.rows * i.columns), np.int32, core.acc, i.acc)
    records = np.ndarray((i.channels,), numerics.RECORD, core.pad, i.parameters)
    raw = bool(i.flags & RAW_OUTPUT)
    dtype = np.int32 if raw else _type(i.flags & SIGNED_OUTPUT)
    strides = (i.channel_stride, i.row_stride, i.column_stride)
    out = np.ndarray((i.channels, i.rows, i.columns), dtype, core.pad, i.pad, strides)
    if raw:
        return out, (acc + records["bias"][:, None]).reshape(out.shape)
    zero, low, high = (_as(dtype, byte) for byte in (i.zero, i.low, i.high))
    return out, numerics.requantise(acc, records, core.mode, zero, low, high).reshape(out.shape)


def _add(core: Core, i: Add) -> tuple[Array, Array]:
    shape = (i.planes, i.rows, i.columns)
    b_columns = 1 if i.flags & BROADCAST_B else i.columns
    a_type, b_type, y_type = (_type(i.flags & flag) for flag in (SIGNED_INPUT, SIGNED_B, SIGNED_OUTPUT))
    a = np.ndarray(shape, a_type, core.pad, i.a, (i.a_plane_stride, i.a_row_stride, 1)).astype(np.float32)
    b = np.ndarray((*shape[:2], b_columns), b_type, core.pad, i.b, (i.b_plane_stride, i.b_row_stride, 1))
    a -= np.float32(_as(a_type, i.a_zero))
    b = b.astype(np.float32) - np.float32(_as(b_type, i.b_zero))
    function = numerics.mul if isinstance(i, Mul) else numerics.add
    total = function(a, b, (i.a_scale, i.b_scale, i.shift), core.mode)
    out = np.ndarray(shape, y_type, core.pad, i.pad, (i.plane_stride, i.row_stride, 1))
    return out, _clamped(total, i, y_type)


def _pool(core: Core, i: Pool) -> tuple[Array, Array]:
    x_type, y_type = _type(i.flags & SIGNED_INPUT), _type(i.flags & SIGNED_OUTPUT)
    shape = (i.planes, i.oh, i.ow)
    strides = (i.input_plane_stride, i.row_step * i.input_row_stride, i.column_step)
    taps = [
        np.ndarray(shape, x_type, core.pad, i.input + row * i.input_row_stride + column, strides)
        for row in range(i.kh)
        for column in range(i.kw)
    ] if i.oh * i.ow > 1 else []  # fmt: skip
    out = np.ndarray(shape, y_type, core.pad, i.pad, (i.plane_stride, i.row_stride, 1))
    whole = np.ndarray((i.planes, i.kh, i.kw), x_type, core.pad, i.input, (i.input_plane_stride, i.input_row_stride, 1))
    if i.flags & MAXIMUM:
        if not taps:
            return out, whole.max(axis=(1, 2))[:, None, None]
        best = taps[0].copy()
        for tap in taps[1:]:
            np.maximum(best, tap, out=best)
        return out, best
    total = np.zeros(shape, np.int32)
    for tap in taps:
        total += tap
    if not taps:
        total[:, 0, 0] = whole.sum(axis=(1, 2), dtype=np.int32)
    count = i.kh * i.kw
    total -= count * _as(x_type, i.input_zero)
    return out, _clamped(numerics.mean(total, count, i.scale, i.shift, core.mode), i, y_type)


def _lookup(core: Core, i: Lookup) -> tuple[Array, Array]:
    shape = (i.planes, i.rows, i.columns)
    strides = (i.input_plane_stride, i.input_row_stride, i.input_column_stride)
    x = np.ndarray(shape, np.uint8, core.pad, i.input, strides)
    table = np.ndarray((256,), np.uint8, core.pad, i.table)
    out = np.ndarray(shape, np.uint8, core.pad, i.pad, (i.plane_stride, i.row_stride, i.column_stride))
    return out, table[x]


_START: dict[type[Word], Callable[[Core, Any], tuple[Array, Array]]] = {
    Load: _load, Unpack: _unpack, Store: _store, Fill: _fill, Exec: _exec, Requant: _requant,
    Add: _add, Mul: _add, Pool: _pool, Lookup: _lookup,
}  # fmt: skip


def _clamped(total: Array, i: Add | Pool, dtype: type[np.generic]) -> Array:
    """``clamp(total + zero, low, high)`` of a float total."""
    zero, low, high = (_as(dtype, byte) for byte in (i.zero, i.low, i.high))
    total += np.float32(zero)
    return np.clip(total, low, high, out=total)


def _type(signed: int) -> type[np.generic]:
    return np.int8 if signed else np.uint8


def _as(dtype: type[np.generic], byte: int) -> int:
    return byte - 256 if dtype is np.int8 and byte > 127 else byte
