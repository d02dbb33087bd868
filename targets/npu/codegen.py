"""From a program to its command stream: loops over tiles, two slots per buffer, loads only of what is not there yet."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from graphopt.targets.npu import numerics
from graphopt.targets.npu.check import check
from graphopt.targets.npu.emit import Emitter, Span, spans
from graphopt.targets.npu.isa import (
    ACCUMULATE,
    BROADCAST_B,
    MAXIMUM,
    PACKED,
    RAW_OUTPUT,
    SIGNED_B,
    SIGNED_INPUT,
    SIGNED_OUTPUT,
    SIGNED_WEIGHT,
    Add,
    End,
    Exec,
    Lookup,
    Mul,
    Pool,
    Requant,
)
from graphopt.targets.npu.layer import Layer
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.place import Block, place, pool_fill
from graphopt.targets.npu.program import Contract, Pair, Program, Quantum, Table, Tensor, Window, whole
from graphopt.targets.npu.stream import Place, Stream
from graphopt.targets.npu.stream import Span as Source
from graphopt.targets.npu.tiling import Tiling, window_extent
from graphopt.targets.npu.tokens import add_tokens

Array = np.ndarray[Any, Any]


def compile_layer(layer: Layer, machine: Machine) -> tuple[Stream, Array]:
    """The checked stream of one layer and its constants (uint8). Raises `ValueError` as `compile_program` does."""
    return compile_program(single(layer), machine)


def single(layer: Layer) -> Program:
    """The program of one layer."""
    g = layer.geometry
    x = Tensor("input", (1, 1, g.iw, g.cin) if g.channels_last else (g.batch, g.groups * g.cin, g.ih, g.iw))
    y_shape = (1, 1, g.ow, g.oc) if g.channels_last else (g.batch, g.groups * g.oc, g.oh, g.ow)
    y = Tensor("output", y_shape, g.output_size)
    return Program(layer.name, (Contract(layer, whole(x), whole(y)),), (x,), (y,))


def compile_program(program: Program, machine: Machine) -> tuple[Stream, Array]:
    """The checked stream of `program` and its constants (uint8).

    Raises:
        ValueError: an operator does not fit the machine, or it can't express a requantisation multiplier.
    """
    placement = place(program, machine)
    emitter, mode = Emitter(program, placement, packs=machine.decoder is not None), machine.requantise
    sources: list[Source] = []
    for at, (op, tile) in enumerate(zip(program.ops, placement.tiles, strict=True)):
        emitter.begin(at)
        if not sources or sources[-1].node != op.name:
            sources.append(Source(len(emitter.words), op.name))
        if isinstance(op, Contract):
            assert isinstance(tile, Tiling)
            _Contraction(emitter, at, op, tile, mode).emit()
        else:
            assert isinstance(tile, Block)
            _blocks(emitter, at, op, tile, mode)
    words = (*add_tokens(emitter.words), End())
    constants = np.frombuffer(bytes(emitter.constants), np.uint8)
    far = placement.far
    stream = Stream(
        program.name,
        machine.digest(),
        (constants.nbytes, placement.far_bytes),
        tuple(Place(far[tensor], tensor.bytes) for tensor in program.inputs),
        tuple(Place(far[tensor], tensor.bytes) for tensor in program.outputs),
        tuple(sources),
        words,
    )
    check(stream, machine)
    return stream, constants


class _Contraction:
    """Writes the words of one convolution or matrix product."""

    def __init__(self, emitter: Emitter, at: int, op: Contract, tiling: Tiling, mode: numerics.Mode) -> None:
        layer = op.layer
        self._emitter, self._at, self._op, self._layer = emitter, at, op, layer
        self._g, self._tiling = layer.geometry, tiling
        self._records = numerics.pack_parameters(layer.bias, layer.requantise.multiplier, mode)
        g = self._g
        self._rows = layer.weights.reshape(g.groups, g.oc, g.cin, g.kh * g.kw)
        signs = (
            (layer.input_signed, SIGNED_INPUT),
            (layer.weights.dtype == np.int8, SIGNED_WEIGHT),
            (g.weight_bits == 4, PACKED),
        )
        self._flags = sum(flag for set_, flag in signs if set_)

    def emit(self) -> None:
        """One `exec` per tile and part of the reduction, then `requant` and `store`."""
        g, t = self._g, self._tiling
        spatial = [(n, y, x) for n in range(g.batch) for y in spans(g.oh, t.oh) for x in spans(g.ow, t.ow)]
        channels = list(spans(g.oc, t.oc))
        for group in spans(g.groups, t.groups):
            if t.weights_outer:
                order = ((place, oc) for oc in channels for place in spatial)
            else:
                order = ((place, oc) for place in spatial for oc in channels)
            for (n, y, x), oc in order:
                self._tile(group, oc, n, y, x)

    def _tile(self, group: Span, oc: Span, n: int, y: Span, x: Span) -> None:
        acc, _ = self._emitter.slot("acc", object())
        for cin in spans(self._g.cin, self._tiling.cin):
            source, strides = self._input(group, cin, n, y, x)
            weights = self._weights(group, oc, cin)
            self._emitter.words.append(
                Exec(
                    *(self._layer.input_zero & 255, self._layer.weight_zero & 255),
                    *(source, weights, acc),
                    *(group[1], cin[1], oc[1], y[1], x[1], self._g.kh, self._g.kw),
                    *strides,
                    flags=self._flags | (ACCUMULATE if cin[0] else 0),
                )
            )
        self._finish(acc, group, oc, n, y, x)

    def _input(self, group: Span, cin: Span, n: int, y: Span, x: Span) -> tuple[int, tuple[int, ...]]:
        """Bring the input window to the scratchpad; its address and the strides `exec` walks it with."""
        g, view = self._g, self._op.input
        if g.channels_last:
            block = self._emitter.read("input", view, 0, (0, 1), x, cin)
            return block.address, (1, 0, block.row, 0, 0)
        rows, columns = window_extent(g, y[1], x[1])
        top, left = y[0] * g.stride[0] - g.pad[0], x[0] * g.stride[1] - g.pad[1]
        channels = (group[0] * g.cin + cin[0], group[1] * cin[1])
        fill = self._layer.input_zero & 255
        block = self._emitter.read("input", view, n, channels, (top, rows), (left, columns), fill)
        row = block.row
        return block.address, (block.plane, g.stride[0] * row, g.stride[1], g.dilation[0] * row, g.dilation[1])

    def _weights(self, group: Span, oc: Span, cin: Span) -> int:
        part = self._rows[group[0] : sum(group), oc[0] : sum(oc), cin[0] : sum(cin)].reshape(-1)
        key = (self._at, "weights", group, oc, cin)
        if self._g.weight_bits == 4:
            return self._emitter.constant("weights", key, pack_nibbles(part))
        return self._emitter.weights(key, part, self._layer.weight_zero & 255)

    def _finish(self, acc: int, group: Span, oc: Span, n: int, y: Span, x: Span) -> None:
        """Requantise the accumulators and store the result."""
        g, out, view, emitter = self._g, self._layer.requantise, self._op.output, self._emitter
        first, channels = group[0] * g.oc + oc[0], group[1] * oc[1]
        key = (self._at, "parameters", group, oc)
        parameters = emitter.constant("parameters", key, self._records[first : first + channels])
        block = (0, (0, 1), x, (first, channels)) if g.channels_last else (n, (first, channels), y, x)
        target, size = emitter.result(view, *block), g.output_size
        if g.channels_last:
            walk = (channels, 1, x[1], size, 0, target.row)
        else:
            walk = (channels, y[1], x[1], target.plane, target.row, size)
        bounds = (out.zero & 255, out.low & 255, out.high & 255)
        flags = (SIGNED_OUTPUT if out.signed else 0) | (RAW_OUTPUT if out.raw else 0)
        emitter.words.append(Requant(*bounds, acc, parameters, target.address, *walk, flags=flags))
        emitter.finish(view, *block, target)


def pack_nibbles(values: Array) -> Array:
    """4-bit values as bytes, the first of two in the low bits; an odd last one is followed by zero."""
    even = np.zeros(-(-values.size // 2) * 2, np.uint8)
    even[: values.size] = values.view(np.uint8) & 15
    return even[::2] | (even[1::2] << 4)


def _blocks(emitter: Emitter, at: int, op: Pair | Table | Window, tile: Block, mode: numerics.Mode) -> None:
    """The words of an operator of the vector unit, block by block."""
    batch, channels, height, width = op.output.shape
    for n, c, y in itertools.product(range(batch), spans(channels, tile.channels), spans(height, tile.rows)):
        block = (n, c, y, (0, width))
        if isinstance(op, Pair):
            _pair(emitter, op, *block, mode)
        elif isinstance(op, Table):
            _table(emitter, at, op, *block)
        else:
            _window(emitter, op, *block, mode)


def _pair(emitter: Emitter, op: Pair, n: int, c: Span, y: Span, x: Span, mode: numerics.Mode) -> None:
    spread = op.b.shape[2:] == (1, 1) and op.a.shape[2:] != (1, 1)
    a = emitter.read("input", op.a, n, c, y, x)
    b = emitter.read("other", op.b, n, c, (0, 1), (0, 1)) if spread else emitter.read("other", op.b, n, c, y, x)
    target = emitter.result(op.output, n, c, y, x)
    pack = numerics.pack_pair if op.op == "Add" else numerics.pack_product
    flags = (SIGNED_INPUT if op.a_quantum.signed else 0) | (SIGNED_B if op.b_quantum.signed else 0)
    kind = Add if op.op == "Add" else Mul
    emitter.words.append(
        kind(
            *(a.address, b.address, target.address, c[1], y[1], x[1], a.plane, a.row),
            *(b.plane, 0 if spread else b.row, target.plane, target.row),
            *pack(op.a_scale, op.b_scale, mode),
            *(op.a_quantum.zero & 255, op.b_quantum.zero & 255, *_bounds(op.result)),
            flags=flags | (SIGNED_OUTPUT if op.result.signed else 0) | (BROADCAST_B if spread else 0),
        )
    )
    emitter.finish(op.output, n, c, y, x, target)


def _table(emitter: Emitter, at: int, op: Table, n: int, c: Span, y: Span, x: Span) -> None:
    down, across = op.repeat
    rows = (y[0] // down, (sum(y) - 1) // down - y[0] // down + 1)
    source = emitter.read("input", op.input, n, c, rows, (0, op.input.shape[3]))
    table = emitter.constant("table", (at, "table"), op.table)
    target = emitter.result(op.output, n, c, y, x)
    for row, column in itertools.product(range(min(down, y[1])), range(across)):
        count = -(-(y[1] - row) // down)
        first = (y[0] + row) // down - rows[0]
        emitter.words.append(
            Lookup(
                source.address + first * source.row, table, target.address + row * target.row + column,
                *(c[1], count, op.input.shape[3], source.plane, source.row, 1),
                *(target.plane, down * target.row, across),
            )
        )  # fmt: skip
    emitter.finish(op.output, n, c, y, x, target)


def _window(emitter: Emitter, op: Window, n: int, c: Span, y: Span, x: Span, mode: numerics.Mode) -> None:
    rows = (y[0] * op.stride[0] - op.pad[0], (y[1] - 1) * op.stride[0] + op.kernel[0])
    columns = (-op.pad[1], (x[1] - 1) * op.stride[1] + op.kernel[1])
    source = emitter.read("input", op.input, n, c, rows, columns, pool_fill(op))
    target = emitter.result(op.output, n, c, y, x)
    count = op.kernel[0] * op.kernel[1]
    scale, shift = (0, 0) if op.maximum else numerics.pack_mean(op.scale, count, mode)
    flags = (MAXIMUM if op.maximum else 0) | (SIGNED_INPUT if op.quantum.signed else 0)
    emitter.words.append(
        Pool(
            *(source.address, target.address, c[1], y[1], x[1], *op.kernel, *op.stride),
            *(source.plane, source.row, target.plane, target.row),
            *(scale, shift, op.quantum.zero & 255, *_bounds(op.result)),
            flags=flags | (SIGNED_OUTPUT if op.result.signed else 0),
        )
    )
    emitter.finish(op.output, n, c, y, x, target)


def _bounds(result: Quantum) -> tuple[int, int, int]:
    return result.zero & 255, result.low & 255, result.high & 255
