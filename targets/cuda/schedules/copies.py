"""Asynchronous copies that TVM 0.27 leaves to threads: of integers under a condition, and of loops not vectorised.

Its own (InjectPTXAsyncCopy) are of vectors, and zeros elsewhere of floats. A condition on a convolution's border is the
same for all elements of a copy where they are of one pixel, which shows only once loops are unrolled and simplified,
after vectors were made. Also zeros of 16 integers of 8 bits, which TVM prints as an int4 of 16 arguments.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.sym import Analyzer
from tvm.tirx.compilation_pipeline import get_tir_pipeline, register_tir_pipeline

PIPELINE = "graphopt_cuda"
_ASYNCHRONOUS, _COPY = "async_commit_queue_scope", "tirx.s_tir.cp_async_raw"
_BYTES = (4, 8, 16)


def _pipeline() -> tuple[Any, Any, Any]:
    """TVM's own, and then these on what runs on the device."""
    defaults: Any = get_tir_pipeline("s_tir")
    passes, host, device = defaults
    return passes, host, lambda: tvm.transform.Sequential([_copies, device()])


@tirx.transform.prim_func_pass(opt_level=0)
def _copies(function: Any, _module: Any, _context: Any) -> Any:
    values: dict[Any, Any] = {}

    def bind(found: Any) -> None:
        values[found.var] = found.value

    def loop(found: Any) -> Any:
        return _loop(found, values)

    def stage(found: Any) -> Any:
        if str(found.attr_key) != _ASYNCHRONOUS:
            return found
        body = tvm_ffi.structural_map(found.body, [(tirx.For, loop), (tirx.BufferStore, _vector)])
        return tirx.AttrStmt(found.node, found.attr_key, found.value, body)

    tvm_ffi.structural_walk(function.body, (tirx.Bind, bind))
    body = tvm_ffi.structural_map(function.body, (tirx.AttrStmt, stage))
    return function.with_body(tvm_ffi.structural_map(body, (tirx.Broadcast, _broadcast)))


@dataclasses.dataclass(frozen=True)
class _Move:
    """From one place of global memory to one of shared memory; zeros where `condition`, if given, does not hold."""

    source: Any
    at: Any
    to: Any
    into: Any
    condition: Any

    def copy(self, size: int) -> Any:
        """`size` bytes of it, asynchronously."""
        arguments = [self.to.data, self.into, self.source.data, self.at, size]
        arguments += [] if self.condition is None else [self.condition]
        return tirx.Evaluate(tirx.call_intrin(str(self.to.dtype), _COPY, *arguments))


def _move(store: Any) -> _Move | None:
    """What `store` moves, if it is nothing else."""
    read, condition = store.value, None
    if _name(read) == "prim.if_then_else":
        condition, read, other = read.args
        if not _is_zero(other):
            return None
    source = getattr(read, "source", None)  # of a load from memory
    if source is None or str(source.scope()) != "global" or str(store.buffer.scope()) != "shared":
        return None
    return _Move(source, read.indices[0], store.buffer, store.indices[0], condition)


def _vector(store: Any) -> Any:
    """`store` as a copy, if it is one of a vector."""
    move, size = _move(store), _bytes(store.value)
    if move is None or size not in _BYTES or not (_is_run(move.at) and _is_run(move.into)):
        return store
    return dataclasses.replace(move, at=move.at.base, into=move.into.base).copy(size)


def _loop(found: Any, values: Mapping[Any, Any]) -> Any:
    """`found` as a copy, if it is a loop over neighbours under one condition, aligned in both memories."""
    body = list(found.body.seq) if isinstance(found.body, tirx.SeqStmt) else [found.body]
    *binds, store = body
    if not isinstance(store, tirx.BufferStore) or not all(isinstance(bind, tirx.Bind) for bind in binds):
        return found
    move, extent = _move(store), found.extent
    size = int(extent) * _bytes(store.value) if isinstance(extent, tirx.IntImm) else 0
    if move is None or size not in _BYTES or int(extent) < 2:
        return found
    lane, lanes = found.loop_var, int(extent)
    zero = {lane: tirx.IntImm(str(lane.ty.dtype), 0)}
    places = [_apart(_inlined(place, values), lane, lanes) for place in (move.at, move.into)]
    if not all(_is_aligned(place, lane, lanes) for place in places):
        return found
    if move.condition is not None and _uses(_apart(_inlined(move.condition, values), lane, lanes), lane):
        return found
    first = dataclasses.replace(move, at=_replaced(move.at, zero), into=_replaced(move.into, zero))
    return tirx.SeqStmt([*(_replaced(bind, zero) for bind in binds), first.copy(size)]) if binds else first.copy(size)


def _inlined(expression: Any, values: Mapping[Any, Any]) -> Any:
    """`expression` of no variable that a statement binds."""

    def value(variable: tirx.Var) -> Any:
        return _inlined(values[variable], values) if variable in values else variable

    return tvm_ffi.structural_map(expression, (tirx.Var, value))


def _replaced(part: Any, by: Mapping[Any, Any]) -> Any:
    def value(variable: tirx.Var) -> Any:
        return by.get(variable, variable)

    return tvm_ffi.structural_map(part, (tirx.Var, value))


def _apart(expression: Any, lane: Any, lanes: int) -> Any:
    """`expression` without `lane`, of `lanes`, in quotients, and next to remainders and in bounds by their multiples::

    (n e + l) / (n c) = (n e) / (n c)    (n e + l) % (n c) = (n e) % (n c) + l    n e + l < n c  <=>  n e < n c
    """
    zero = {lane: tirx.IntImm(str(lane.ty.dtype), 0)}

    def simpler(found: Any) -> Any:
        if not isinstance(found.b, tirx.IntImm) or int(found.b) % lanes or not _is_aligned(found.a, lane, lanes):
            return found
        start = type(found)(_replaced(found.a, zero), found.b)
        return start + lane if isinstance(found, tirx.FloorMod) else start

    return tvm_ffi.structural_map(expression, ((tirx.FloorDiv, tirx.FloorMod, tirx.LT), simpler))


def _is_aligned(place: Any, lane: Any, lanes: int) -> bool:
    """Whether `place` is a multiple of `lanes`, plus `lane`."""
    start = _replaced(place, {lane: tirx.IntImm(str(lane.ty.dtype), 0)})
    known: Any = Analyzer().modular_set(Analyzer().simplify(start))
    step: Any = Analyzer().simplify(place - start - lane)
    is_run = isinstance(step, tirx.IntImm) and int(step) == 0
    return is_run and math.gcd(int(known.coeff), int(known.base)) % lanes == 0


def _uses(condition: Any, variable: Any) -> bool:
    found: list[Any] = []
    simple: Any = Analyzer().simplify(condition)
    tvm_ffi.structural_walk(simple, (tirx.Var, found.append))
    return any(one.same_as(variable) for one in found)


def _bytes(value: Any) -> int:
    return tvm.DataType(str(value.ty.dtype)).itemsize


def _name(value: Any) -> str:
    return str(getattr(getattr(value, "op", None), "name", ""))


def _is_zero(value: Any) -> bool:
    single: Any = value.value if isinstance(value, tirx.Broadcast) else value
    return isinstance(single, tirx.IntImm | tirx.FloatImm) and float(single.value) == 0


def _is_run(index: Any) -> bool:
    return isinstance(index, tirx.Ramp) and str(index.stride) == "1"


def _broadcast(value: Any) -> Any:
    """A constant of more than 4 integers of 8 bits as one of integers of 32."""
    kind = tvm.DataType(str(value.ty.dtype))
    if kind.bits != 8 or kind.lanes <= 4 or not isinstance(value.value, tirx.IntImm):
        return value
    four = int(np.full(4, int(value.value) & 255, np.uint8).view(np.int32)[0])
    words = tirx.Broadcast(tirx.IntImm("int32", four), tirx.IntImm("int32", kind.lanes // 4))
    return tirx.reinterpret(str(kind), words)


register_tir_pipeline(PIPELINE, _pipeline)
