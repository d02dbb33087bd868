"""Any function of 8 bits to 8 bits by a table of 256 bytes, channels-last; each part of a concatenation by its own.

With AVX512-VBMI a register holds 64 entries, and one instruction picks 64 bytes from two registers: two of them and a
choice by the highest bit look 64 bytes up. Elsewhere each byte is a load.
"""

from __future__ import annotations

import itertools
from typing import Any

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, splat, store
from graphopt.targets.llvm.kernels.pointwise import Pointwise, source

VECTOR = 64  # bytes of a register, and entries of a quarter of a table
PICK = "llvm.x86.avx512.vpermi2var.qi.512"


def make(p: Pointwise, isa: Isa, parallel: bool, name: str = "lookup") -> tirx.PrimFunc:
    """``f(x0, x1, ..., table0, table1, ..., y)``: uint8 inputs and output, a table for each segment of `p`."""
    with function(name) as (f, made):
        shapes: list[list[int | str]] = [[p.n, *s.size, s.channels] for s in p.segments]
        inputs = [f.argument(f"x{i}", shape, "uint8") for i, shape in enumerate(shapes)]
        tables = [f.argument(f"t{i}", [256], "uint8") for i in range(len(p.segments))]
        y = f.argument("y", [p.n, p.h, p.w, p.channels], "uint8")
        rows = f.product([p.n, p.h, p.w])
        only = p.segments[0]
        if len(p.segments) == 1 and only.count == only.channels and only.plain(p.h, p.w):
            line = f.product([p.h, p.w, p.channels])
            x_lines, y_lines = (f.view(b, [f.dim(p.n), line]) for b in (inputs[0], y))
            with loop(f.dim(p.n)) as row:
                _run(isa, x_lines, [row], 0, y_lines, row, 0, line, tables[0], parallel)
        else:
            matrices = [f.matrix(x, shape) for x, shape in zip(inputs, shapes, strict=True)]
            out = f.matrix(y, [p.n, p.h, p.w, p.channels])
            starts = itertools.accumulate((s.count for s in p.segments), initial=0)
            with loop(rows, parallel=parallel) as row:
                for x, segment, table, start in zip(matrices, p.segments, tables, starts, strict=False):
                    at = source(p, segment, row)
                    _run(isa, x, [at], segment.start, out, row, start, segment.count, table, False)
    return made[0]


def _run(
    isa: Isa, x: Any, at: list[Expr], first: int, y: Any, row: Expr, to: int, count: Any, table: Any, parallel: bool
) -> None:
    """``y[row, to + i] = table[x[at, first + i]]`` for all `count` elements."""
    whole = count // VECTOR if isa.lanes == 16 and "avx512vbmi" in isa.features else 0
    if whole:
        with loop(whole, parallel=parallel) as v:
            found = _vector(load(x, [*at, first + v * VECTOR], VECTOR), table)
            store(y, found, [row, to + v * VECTOR], VECTOR)
    if whole * VECTOR < count:
        with loop(count, start=whole * VECTOR, parallel=parallel and not whole) as i:
            store(y, table[tirx.Cast("int64", x[*at, first + i])], [row, to + i], 1)


def _vector(indices: Expr, table: Any) -> Expr:
    kind = f"int8x{VECTOR}"
    quarters = [tirx.reinterpret(kind, load(table, [q * VECTOR], VECTOR)) for q in range(4)]
    low, high = (
        tirx.call_llvm_pure_intrin(kind, PICK, quarters[q], tirx.reinterpret(kind, indices), quarters[q + 1])
        for q in (0, 2)
    )
    upper = indices >= splat(128, VECTOR, "uint8")
    return tirx.Select(upper, tirx.reinterpret(f"uint8x{VECTOR}", high), tirx.reinterpret(f"uint8x{VECTOR}", low))
