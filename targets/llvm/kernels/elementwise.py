"""One long function, such as GELU, of every element of rows."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, load, loop, store
from graphopt.targets.llvm.kernels.epilogue import Activation
from graphopt.targets.llvm.kernels.formula import Formula
from graphopt.targets.llvm.kernels.rows import sweep


def make(
    rows: Sequence[int | str], size: int, formula: Activation | Formula, isa: Isa, parallel: bool, name: str
) -> tirx.PrimFunc:
    """``f(x, y)``: both float32 [*rows, size]."""
    with function(name) as (f, made):
        x, y = (f.argument(n, [*rows, size]) for n in ("x", "y"))
        x, y = f.matrix(x, [*rows, size]), f.matrix(y, [*rows, size])
        with loop(f.product(rows), parallel=parallel) as row:

            def run(at: Expr, lanes: int) -> None:
                store(y, formula(load(x, [row, at], lanes), lanes), [row, at], lanes)

            sweep(size, isa.lanes, run)
    return made[0]
