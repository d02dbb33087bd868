"""Concatenation along the channels, channels-last: each position copies the channels of every input in turn."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Isa, function, load, loop, pieces, store


def make(
    rows: Sequence[int | str], channels: Sequence[int], isa: Isa, parallel: bool, name: str = "concat"
) -> tirx.PrimFunc:
    """``f(x0, x1, ..., y)``: inputs [*rows, channels[i]], output [*rows, sum of channels]."""
    total = sum(channels)
    with function(name) as (f, made):
        shapes = [[*rows, c] for c in (*channels, total)]
        arguments = [f.argument(f"x{i}", shape) for i, shape in enumerate(shapes)]
        *inputs, y = [f.matrix(a, shape) for a, shape in zip(arguments, shapes, strict=True)]
        with loop(f.product(rows), parallel=parallel) as row:
            start = 0
            for x, count in zip(inputs, channels, strict=True):
                whole = count // isa.lanes
                if whole:
                    with loop(whole) as v:
                        store(y, load(x, [row, v * isa.lanes], isa.lanes), [row, v * isa.lanes + start], isa.lanes)
                for offset, width in pieces(count - whole * isa.lanes, isa.lanes):
                    at = whole * isa.lanes + offset
                    store(y, load(x, [row, at], width), [row, start + at], width)
                start += count
    return made[0]
