"""A thin layer over TVM's IR builder: functions, loops and vectors the way the kernels write them.

Python loops around these calls unroll; `loop` makes a loop at run time. All indices are int64, as Relax's shapes are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812  # TVM calls it so everywhere

STACK = 1 << 10
"""Bytes from which TVM takes an array from the runtime's memory."""

Expr = Any
"""A TIR expression, or a Python number where one will do."""


@dataclasses.dataclass(frozen=True)
class Isa:
    """What a kernel needs to know of a CPU: float32 lanes of a vector register, and how many registers there are.

    `features`: LLVM's names of those that integer kernels choose by.
    """

    lanes: int
    registers: int
    features: frozenset[str] = frozenset()


class Function:
    """A PrimFunc under construction: use inside `function`."""

    def __init__(self) -> None:
        self.symbols: dict[str, tirx.Var] = {}

    def symbol(self, name: str) -> tirx.Var:
        """The symbolic dimension called `name`."""
        return self.symbols.setdefault(name, tirx.Var(name, "int64"))

    def dim(self, size: int | str) -> Expr:
        """A dimension as an int64 expression."""
        return self.symbol(size) if isinstance(size, str) else i64(size)

    def argument(self, name: str, shape: Sequence[int | str], dtype: str = "float32") -> Any:
        """A buffer argument; strings in `shape` are symbolic dimensions."""
        return T.arg(name, T.buffer([self.dim(d) for d in shape], dtype))

    def view(self, whole: Any, shape: Sequence[Expr]) -> Any:
        """The buffer `whole` with other dimensions. After all arguments."""
        return T.decl_buffer([i64(d) for d in shape], whole.dtype, data=whole.data)

    def matrix(self, whole: Any, shape: Sequence[int | str]) -> Any:
        """The buffer `whole` of `shape` seen as a matrix: all dimensions but the last are one. After all arguments."""
        return T.decl_buffer([i64(self.product(shape[:-1])), self.dim(shape[-1])], whole.dtype, data=whole.data)

    def product(self, shape: Sequence[int | str]) -> Expr:
        """The number of elements of `shape`: an int when all dimensions are."""
        if all(isinstance(d, int) for d in shape):
            return math.prod(d for d in shape if isinstance(d, int))
        total: Expr = i64(1)
        for d in shape:
            total = total * self.dim(d)
        return total


@contextlib.contextmanager
def function(name: str) -> Generator[tuple[Function, list[tirx.PrimFunc]]]:
    """Build a PrimFunc; when the block ends it is in the list."""
    made: list[Any] = []
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
            yield Function(), made
        made.append(builder.get())


def i64(value: Expr) -> Expr:
    """`value` as an int64 index."""
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


@contextlib.contextmanager
def loop(extent: Expr, *, start: Expr = 0, parallel: bool = False) -> Generator[Expr]:
    """``for v in range(start, extent)``, across threads when `parallel`."""
    kind = T.parallel if parallel else T.serial
    with kind(i64(start), i64(extent)) as v:
        yield v


def load(buffer: Any, indices: Sequence[Expr], lanes: int) -> Expr:
    """`lanes` consecutive elements along the last axis from `indices` on."""
    *outer, last = indices
    return tirx.BufferLoad(buffer, [*map(i64, outer), _run(last, lanes)])


def store(buffer: Any, value: Expr, indices: Sequence[Expr], lanes: int) -> None:
    """The inverse of `load`."""
    *outer, last = indices
    T.buffer_store(buffer, value, [*map(i64, outer), _run(last, lanes)])


def _run(start: Expr, lanes: Expr) -> Expr:
    """Indices from `start` on; one of them is a plain index."""
    return tirx.Ramp(i64(start), i64(1), lanes) if lanes > 1 else i64(start)


def prefetch(buffer: Any, indices: Sequence[Expr]) -> None:
    """Ask for the cache line at `indices`; nothing happens where it lies outside the buffer."""
    T.evaluate(tirx.call_intrin("void", "tirx.prefetch", tirx.address_of(load(buffer, indices, 1)), 0, 2, 1))


def splat(value: Expr, lanes: Expr, dtype: str = "float32") -> Expr:
    """A vector of equal elements; `dtype` is that of a Python number."""
    scalar = value
    if isinstance(value, (int, float)):
        scalar = tirx.const(float(value) if dtype == "float32" else int(value), dtype)
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def named(value: Expr) -> Expr:
    """`value`, computed here once and for all its uses."""
    return T.Bind(value)


def registers(elements: int, dtype: str = "float32") -> Any:
    """A small array (below 1 KiB) on the stack; LLVM keeps it in registers when every index is a constant.

    Its scope is "global" because TVM puts nothing else on the stack, nor anything of 1 KiB or more: a "local" array is
    memory that the runtime hands out. LLVM then keeps its last values for a store that nobody reads, in registers that
    the next loop needs.

    Raises:
        ValueError: it would have 1 KiB or more.
    """
    if elements * np.dtype(dtype).itemsize >= STACK:
        raise ValueError(f"{elements} elements of {dtype} don't fit the stack: take several arrays, or scratch")
    return T.alloc_buffer((elements,), dtype)


def vectors(count: int, lanes: int, dtype: str = "float32") -> list[Any]:
    """`count` arrays of one vector each, as `registers`: however many there are, they can be kept in registers."""
    return [registers(lanes, dtype) for _ in range(count)]


def scratch(shape: Sequence[Expr], dtype: str = "float32") -> Any:
    """A workspace, allocated by the runtime for each call (each thread's own inside a parallel loop)."""
    return T.alloc_buffer(tuple(map(i64, shape)), dtype, scope="global")


@contextlib.contextmanager
def when(condition: Expr) -> Generator[None]:
    """``if condition:``."""
    with T.If(condition), T.Then():
        yield


def pieces(count: int, lanes: int) -> list[tuple[int, int]]:
    """`count` elements as (start, width) vectors: full ones, then halves: 24 at 16 lanes is (0, 16), (16, 8)."""
    found: list[tuple[int, int]] = []
    start, width = 0, lanes
    while start < count:
        while width > count - start:
            width //= 2
        found.append((start, width))
        start += width
    return found


def runs(count: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """``body(start, width)`` for all of `count` elements: a loop over whole vectors, then the rest in `pieces`."""
    whole = count // lanes
    if whole:
        with loop(whole) as v:
            body(v * lanes, lanes)
    for start, width in pieces(count - whole * lanes, lanes):
        body(whole * lanes + start, width)
