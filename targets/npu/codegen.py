"""From a layer to its command stream: loops over tiles, two slots per buffer, loads only of what is not there yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt.targets.npu.check import check
from graphopt.targets.npu.isa import (
    ACCUMULATE,
    CONSTANTS,
    INPUT,
    OUTPUT,
    PARAMETER_BYTES,
    RAW_OUTPUT,
    SIGNED_INPUT,
    SIGNED_OUTPUT,
    SIGNED_WEIGHT,
    End,
    Exec,
    Fill,
    Instruction,
    Load,
    Store,
    Vector,
)
from graphopt.targets.npu.layer import Layer
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.numerics import pack_parameters
from graphopt.targets.npu.stream import Stream
from graphopt.targets.npu.tiling import SLOTS, Tiling, buffers, choose, window_extent

Array = np.ndarray[Any, Any]
Span = tuple[int, int]  # start, size


def compile_layer(layer: Layer, machine: Machine) -> tuple[Stream, Array]:
    """The checked stream of `layer` and its constants: the weights, then one parameter record per channel (uint8).

    Raises:
        ValueError: no tile fits the machine, or it can't express a requantisation multiplier.
    """
    records = pack_parameters(layer.bias, layer.requantise.multiplier, machine.requantise)
    constants = np.concatenate([np.ascontiguousarray(part).view(np.uint8).ravel() for part in (layer.weights, records)])
    geometry = layer.geometry
    emitter = _Emitter(layer, choose(geometry, machine), machine)
    emitter.emit()
    sizes = (constants.nbytes, geometry.input_bytes, geometry.output_bytes)
    stream = Stream(layer.name, machine.digest(), sizes, (*emitter.code, End()))
    check(stream, machine)
    return stream, constants


class Allocator:
    """Hands out addresses of one memory from the bottom up; raises `MemoryError` when it is full."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._used = capacity, 0

    def take(self, size: int) -> int:
        """The address of `size` fresh bytes."""
        address, self._used = self._used, self._used + size
        if self._used > self._capacity:
            raise MemoryError(f"{self._used} bytes needed of {self._capacity}")
        return address


class _Slots:
    """The slots of one buffer and what lies in each; what was used least recently makes room."""

    def __init__(self, allocator: Allocator, size: int) -> None:
        self._held: list[tuple[int, object]] = [(allocator.take(size), None) for _ in range(SLOTS)]

    def place(self, key: object) -> tuple[int, bool]:
        """Address for `key`, and whether it lies there already."""
        hit = next((entry for entry in self._held if entry[1] == key), None)
        entry = hit or self._held[0]
        self._held.remove(entry)
        self._held.append((entry[0], key))
        return entry[0], hit is not None


class _Emitter:
    """Writes the stream of one layer."""

    def __init__(self, layer: Layer, tiling: Tiling, machine: Machine) -> None:
        self.code: list[Instruction] = []
        self._layer, self._g, self._tiling = layer, layer.geometry, tiling
        need, pad, acc = (
            buffers(layer.geometry, tiling),
            Allocator(machine.scratchpad_bytes),
            Allocator(machine.accumulator_bytes),
        )
        self._inputs, self._weights = _Slots(pad, need.input), _Slots(pad, need.weights)
        self._parameters, self._outputs = _Slots(pad, need.parameters), _Slots(pad, need.output)
        self._accs = _Slots(acc, need.acc)
        signs = ((layer.input_signed, SIGNED_INPUT), (layer.weights.dtype == np.int8, SIGNED_WEIGHT))
        self._flags = sum(flag for signed, flag in signs if signed)

    def emit(self) -> None:
        """One `exec` per tile and part of the reduction, then `vector` and `store`."""
        g, t = self._g, self._tiling
        spatial = [(n, y, x) for n in range(g.batch) for y in _spans(g.oh, t.oh) for x in _spans(g.ow, t.ow)]
        channels = list(_spans(g.oc, t.oc))
        for group in _spans(g.groups, t.groups):
            if t.weights_outer:
                order = ((place, oc) for oc in channels for place in spatial)
            else:
                order = ((place, oc) for place in spatial for oc in channels)
            for (n, y, x), oc in order:
                self._tile(group, oc, n, y, x)

    def _tile(self, group: Span, oc: Span, n: int, y: Span, x: Span) -> None:
        acc, _ = self._accs.place(object())
        for cin in _spans(self._g.cin, self._tiling.cin):
            source, strides = self._input(group, cin, n, y, x)
            weights = self._weight(group, oc, cin)
            self.code.append(
                Exec(
                    self._flags | (ACCUMULATE if cin[0] else 0),
                    self._layer.input_zero & 255,
                    self._layer.weight_zero & 255,
                    *(source, weights, acc),
                    *(group[1], cin[1], oc[1], y[1], x[1], self._g.kh, self._g.kw),
                    *strides,
                )
            )
        self._finish(acc, group, oc, n, y, x)

    def _input(self, group: Span, cin: Span, n: int, y: Span, x: Span) -> tuple[int, tuple[int, ...]]:
        """Bring the input window to the scratchpad; its address and the strides `exec` walks it with."""
        g = self._g
        address, present = self._inputs.place((group, cin, n, y, x))
        if g.channels_last:
            if not present:
                dram = x[0] * g.cin + cin[0]
                self.code.append(Load(INPUT, dram, address, 1, x[1], cin[1], 0, g.cin, 0, cin[1]))
            return address, (1, 0, cin[1], 0, 0)
        rows, columns = window_extent(g, y[1], x[1])
        if not present:
            top, left = y[0] * g.stride[0] - g.pad[0], x[0] * g.stride[1] - g.pad[1]
            channel = (n * g.groups + group[0]) * g.cin + cin[0]
            self._window(address, channel, group[1] * cin[1], (top, rows), (left, columns))
        strides = (rows * columns, g.stride[0] * columns, g.stride[1], g.dilation[0] * columns, g.dilation[1])
        return address, strides

    def _window(self, address: int, channel: int, planes: int, y: Span, x: Span) -> None:
        """Load the part of a window that lies inside the input and fill the rest with the zero point."""
        g = self._g
        rows, columns = y[1], x[1]
        inside_y, inside_x = _inside(y, g.ih), _inside(x, g.iw)

        def fill(row: Span, column: Span) -> None:
            if row[1] and column[1]:
                pad = address + row[0] * columns + column[0]
                value = self._layer.input_zero & 255
                self.code.append(Fill(value, pad, planes, row[1], column[1], rows * columns, columns))

        below, right = inside_y[0] + inside_y[1], inside_x[0] + inside_x[1]
        fill((0, inside_y[0]), (0, columns))
        fill((below, rows - below), (0, columns))
        fill(inside_y, (0, inside_x[0]))
        fill(inside_y, (right, columns - right))
        if inside_y[1] and inside_x[1]:
            dram = (channel * g.ih + y[0] + inside_y[0]) * g.iw + x[0] + inside_x[0]
            pad = address + inside_y[0] * columns + inside_x[0]
            block = (planes, inside_y[1], inside_x[1], g.ih * g.iw, g.iw, rows * columns, columns)
            self.code.append(Load(INPUT, dram, pad, *block))

    def _weight(self, group: Span, oc: Span, cin: Span) -> int:
        address, present = self._weights.place((group, oc, cin))
        if not present:
            taps = self._g.kh * self._g.kw
            row, size = self._g.cin * taps, cin[1] * taps
            dram = (group[0] * self._g.oc + oc[0]) * row + cin[0] * taps
            self.code.append(Load(CONSTANTS, dram, address, 1, group[1] * oc[1], size, 0, row, 0, size))
        return address

    def _finish(self, acc: int, group: Span, oc: Span, n: int, y: Span, x: Span) -> None:
        """Requantise the accumulators and store the result."""
        g, layer = self._g, self._layer
        first, channels, positions = group[0] * g.oc + oc[0], group[1] * oc[1], y[1] * x[1]
        parameters, present = self._parameters.place((group, oc))
        if not present:
            dram, size = g.weight_bytes + first * PARAMETER_BYTES, channels * PARAMETER_BYTES
            self.code.append(Load(CONSTANTS, dram, parameters, 1, 1, size, 0, size, 0, size))
        pad, _ = self._outputs.place(object())
        size, out = g.output_size, layer.requantise
        strides = (size, channels * size) if g.channels_last else (positions * size, size)
        flags = (SIGNED_OUTPUT if out.signed else 0) | (RAW_OUTPUT if out.raw else 0)
        self.code.append(
            Vector(flags, out.zero, out.low, out.high, acc, parameters, pad, channels, positions, *strides)
        )
        if g.channels_last:
            dram = (x[0] * g.oc + first) * size
            block = (1, positions, channels * size, 0, g.oc * size, 0, channels * size)
        else:
            dram = (((n * g.groups * g.oc + first) * g.oh + y[0]) * g.ow + x[0]) * size
            block = (channels, y[1], x[1] * size, g.oh * g.ow * size, g.ow * size, positions * size, x[1] * size)
        self.code.append(Store(OUTPUT, dram, pad, *block))


def _spans(whole: int, size: int) -> Iterator[Span]:
    """Cut `whole` into (start, size) of at most `size`."""
    return ((start, min(size, whole - start)) for start in range(0, whole, size))


def _inside(span: Span, limit: int) -> Span:
    """The part of `span` within [0, limit), relative to the span's start."""
    start = min(max(0, -span[0]), span[1])
    return start, max(0, min(span[1], limit - span[0]) - start)
