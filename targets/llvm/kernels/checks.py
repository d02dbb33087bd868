"""Operands that must be within a range: passed on, or the run is refused with a message.

A kernel refuses as TVM's own code does: it sets the error of its thread and returns a code other than 0, which the
callers up to the virtual machine pass on.
"""

from __future__ import annotations

import dataclasses

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812  # TVM calls it so everywhere
from tvm.tirx.stmt import StringImm

from graphopt.targets.llvm.kernels.emit import Expr, function, i64, loop, registers, when

Size = int | str


@dataclasses.dataclass(frozen=True)
class InRange:
    """Indices of `dims` into something of `sizes`: one for all, or one for each of the last dimension.

    A size that is -1 is that of a second operand of the dimensions `data` along the axis of the same place in `axes`.
    Strings are open dimensions. `kind`: see `guards.LIMITS`.
    """

    dims: tuple[Size, ...]
    dtype: str
    sizes: tuple[int, ...]
    kind: str
    message: str
    data: tuple[Size, ...] = ()
    data_dtype: str = "float32"
    axes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class NotZero:
    """Integers of `dims`, none of which may be zero."""

    dims: tuple[Size, ...]
    dtype: str
    message: str


def in_range(p: InRange, name: str) -> tirx.PrimFunc:
    """``f(indices, y)``, or ``f(indices, data, y)``: y is the indices, those below zero counted from the start."""
    with function(name) as (f, made):
        indices = f.argument("i", list(p.dims), p.dtype)
        if p.data:
            f.argument("x", list(p.data), p.data_dtype)
        y = f.argument("y", list(p.dims), p.dtype)
        each = len(p.sizes)
        count = f.product(p.dims[:-1]) if each > 1 else f.product(p.dims)
        indices, y = f.view(indices, [count, each]), f.view(y, [count, each])
        wrong = registers(1, "int32")
        T.buffer_store(wrong, tirx.const(0, "int32"), [0])
        with loop(count) as i:
            for k, known in enumerate(p.sizes):
                size: Expr = f.dim(p.data[p.axes[k]]) if known < 0 else i64(known)
                index: Expr = tirx.Cast("int64", indices[i, k])
                last = size if p.kind == "length" else size - 1
                if p.kind == "index":
                    index = index + tirx.Select(index < 0, size, i64(0))
                found = tirx.Cast("int32", tirx.any(index < 0, index > last))
                T.buffer_store(wrong, wrong[0] | found, [0])
                T.buffer_store(y, tirx.Cast(p.dtype, index), [i, i64(k)])
        with when(wrong[0] != 0):
            refuse(p.message)
    return made[0]


def not_zero(p: NotZero, name: str) -> tirx.PrimFunc:
    """``f(x, y)``: y is x."""
    with function(name) as (f, made):
        x, y = f.argument("x", list(p.dims), p.dtype), f.argument("y", list(p.dims), p.dtype)
        count = f.product(p.dims)
        x, y = f.view(x, [count]), f.view(y, [count])
        wrong = registers(1, "int32")
        T.buffer_store(wrong, tirx.const(0, "int32"), [0])
        with loop(count) as i:
            found = tirx.Cast("int32", x[i] == tirx.const(0, p.dtype))
            T.buffer_store(wrong, wrong[0] | found, [0])
            T.buffer_store(y, x[i], [i])
        with when(wrong[0] != 0):
            refuse(p.message)
    return made[0]


def refuse(message: str) -> None:
    """End the function with an error."""
    kind, said = StringImm("ValueError"), StringImm(message)
    T.evaluate(tirx.call_extern("int32", "TVMFFIErrorSetRaisedFromCStr", kind, said))
    T.evaluate(tirx.call_intrin("handle", "tirx.tvm_throw_last_error"))
