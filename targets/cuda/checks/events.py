"""What a lowered kernel does to memory, in its order: accesses, barriers, asynchronous copies, loops around them."""

from __future__ import annotations

import dataclasses
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx import expr as tir

from graphopt.targets.cuda.checks.numbers import choice, is_a, operation

Event = Any  # Access | Barrier | Commit | Wait | Loop | Let
_BARRIER, _POINTER = "tvm_storage_sync", "tvm_access_ptr"
_LOAD, _STORE = "tvm_load_matrix_sync", "tvm_store_matrix_sync"
_COPY, _COMMIT, _WAIT = "async_scope", "async_commit_queue_scope", "async_wait_inflight_count"


@dataclasses.dataclass(frozen=True)
class Fragment:
    """A matrix in memory: `rows` of `columns` neighbours, `stride` elements from one row to the next."""

    rows: int
    columns: int
    stride: Any


@dataclasses.dataclass(frozen=True)
class Access:
    """A read or a write at `indices` of `buffer`, where all `conditions` hold.

    `memory`: the buffer that was allocated, of which `buffer` may be another view. `extent`: elements from there on,
    for access by pointer. `fragment`: what the threads of a warp move together, each some of it. `asynchronous`: a copy
    that is issued here, and may be done at any time until it is waited for.
    """

    buffer: Any
    memory: Any
    indices: tuple[Any, ...]
    writes: bool
    conditions: tuple[Any, ...]
    extent: Any = 1
    fragment: Fragment | None = None
    asynchronous: bool = False


@dataclasses.dataclass(frozen=True)
class Barrier:
    """A barrier of the block, reached where all `conditions` hold."""

    conditions: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Commit:
    """A thread's copies since the last one are a group."""

    conditions: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Wait:
    """A thread waits for its groups of copies but for the `pending` latest ones."""

    pending: Any
    conditions: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Let:
    """`variable` has `value` from here on."""

    variable: Any
    value: Any


@dataclasses.dataclass(frozen=True)
class Loop:
    """`variable` from `start` on, `extent` values; bound to the index `thread` of block or thread, or a loop proper."""

    variable: Any
    start: Any
    extent: Any
    thread: str
    body: list[Event]


def events(function: Any) -> list[Event]:
    """Those of the PrimFunc `function`."""
    found: list[Event] = []
    _statement(function.body, (), found, {})
    return found


def open_dimensions(function: Any) -> list[Any]:
    """The variables among the sizes of a PrimFunc's parameters, and its parameters that are numbers."""
    parts = [part for one in function.params for part in (list(one.shape) if hasattr(one, "shape") else [one])]
    return list({part.name: part for part in parts if isinstance(part, tirx.Var)}.values())


def open_sizes(function: Any) -> list[Any]:
    """The sizes of a PrimFunc's parameters that are computed from its open dimensions; no tensor has less than 1."""
    sizes = [size for one in function.params for size in getattr(one, "shape", ())]
    return [size for size in sizes if not isinstance(size, tirx.IntImm | tirx.Var)]


def _statement(statement: Any, conditions: tuple[Any, ...], found: list[Event], views: dict[Any, Any]) -> None:
    if isinstance(statement, tirx.SeqStmt):
        for one in statement.seq:
            _statement(one, conditions, found, views)
    elif isinstance(statement, tirx.For):
        _loop(statement, conditions, found, views)
    elif isinstance(statement, tirx.AttrStmt):
        _attribute(statement, conditions, found, views)
    elif isinstance(statement, tirx.IfThenElse):
        _expression(statement.condition, conditions, found, views)
        _statement(statement.then_case, (*conditions, statement.condition), found, views)
        if statement.else_case is not None:
            _statement(statement.else_case, (*conditions, tir.Not(statement.condition)), found, views)
    elif isinstance(statement, tirx.BufferStore):
        for part in (*statement.indices, statement.value):
            _expression(part, conditions, found, views)
        found.append(_access(statement.buffer, statement.indices, True, conditions, views))
    elif isinstance(statement, tirx.Bind):
        _expression(statement.value, conditions, found, views)
        found.append(Let(statement.var, statement.value))
    elif isinstance(statement, tirx.Evaluate):
        _evaluated(statement.value, conditions, found, views)
    elif isinstance(statement, tirx.stmt.DeclBuffer):
        views[statement.buffer] = _pointed(statement.data)


def _access(buffer: Any, indices: Any, writes: bool, conditions: tuple[Any, ...], views: dict[Any, Any]) -> Access:
    return Access(buffer, views.get(buffer, buffer), tuple(indices), writes, conditions)


def _pointed(data: Any) -> Any:
    """The buffer whose address `data` is."""
    return data.args[0] if isinstance(data, tvm.ir.Call) else data


def _loop(loop: Any, conditions: tuple[Any, ...], found: list[Event], views: dict[Any, Any]) -> None:
    body: list[Event] = []
    _statement(loop.body, conditions, body, views)
    thread = str(loop.thread_binding.thread_tag) if loop.kind == tirx.ForKind.THREAD_BINDING else ""
    found.append(Loop(loop.loop_var, loop.min, loop.extent, thread, body))


def _attribute(attribute: Any, conditions: tuple[Any, ...], found: list[Event], views: dict[Any, Any]) -> None:
    key = str(attribute.attr_key)
    if key == _WAIT:
        found.append(Wait(attribute.value, conditions))
    body = found if key not in ("thread_extent", "virtual_thread") else list[Event]()
    before = len(body)
    _statement(attribute.body, conditions, body, views)
    if key == _COPY:
        body[before:] = [_asynchronous(event) for event in body[before:]]
    elif key == _COMMIT:
        found.append(Commit(conditions))
    elif body is not found:
        tag = str(attribute.node.thread_tag)
        found.append(Loop(attribute.node.var, 0, attribute.value, "" if tag.startswith("vthread") else tag, body))


def _asynchronous(event: Event) -> Event:
    """Its writes to shared memory as copies that are issued."""
    if isinstance(event, Loop):
        return dataclasses.replace(event, body=[_asynchronous(one) for one in event.body])
    if isinstance(event, Access) and event.writes and is_shared(event.memory):
        return dataclasses.replace(event, asynchronous=True)
    return event


def is_shared(buffer: Any) -> bool:
    """Whether the threads of a block have it in common."""
    return str(buffer.scope()).startswith("shared")


def _evaluated(value: Any, conditions: tuple[Any, ...], found: list[Event], views: dict[Any, Any]) -> None:
    if operation(value) == _BARRIER:
        if str(value.args[0].value).startswith("shared"):
            found.append(Barrier(conditions))
        return
    _expression(value, conditions, found, views)


def _expression(value: Any, conditions: tuple[Any, ...], found: list[Event], views: dict[Any, Any]) -> None:
    """The reads of an expression; what a choice does not choose is not read."""
    if is_a(value, tvm.ir.TensorLoad):
        for index in value.indices:
            _expression(index, conditions, found, views)
        found.append(_access(value.source, value.indices, False, conditions, views))
        return
    chosen = choice(value)
    if chosen is not None:
        condition, yes, no = chosen
        _expression(condition, conditions, found, views)
        _expression(yes, (*conditions, condition), found, views)
        _expression(no, (*conditions, tir.Not(condition)), found, views)
        return
    if is_a(value, tir.And):
        _expression(value.a, conditions, found, views)
        _expression(value.b, (*conditions, value.a), found, views)
        return
    name = operation(value)
    if name == _POINTER:
        _pointer(value, conditions, found, views)
    elif name in (_LOAD, _STORE):
        _pointer(value.args[5], conditions, found, views, _fragment(value))
    else:
        for part in _parts(value):
            _expression(part, conditions, found, views)


def _fragment(call: Any) -> Fragment:
    """``tvm_load_matrix_sync(fragment, m, n, k, which, pointer, stride, layout)``; of ``tvm_store_matrix_sync`` too."""
    m, n, k = (int(size) for size in call.args[1:4])
    kind = str(_pointed(call.args[0]).scope()).rpartition(".")[2]
    rows, columns = {"matrix_a": (m, k), "matrix_b": (k, n)}.get(kind, (m, n))
    if "col" in str(call.args[7].value):
        rows, columns = columns, rows
    return Fragment(rows, columns, call.args[6])


def _pointer(
    value: Any,
    conditions: tuple[Any, ...],
    found: list[Event],
    views: dict[Any, Any],
    fragment: Fragment | None = None,
) -> None:
    """``tvm_access_ptr(type, data, offset, extent, mask)``: mask 1 reads, 2 writes."""
    _, data, offset, extent, mask = value.args
    buffer = _pointed(data)
    for writes in (False, True):
        if int(mask) & (2 if writes else 1):
            memory = views.get(buffer, buffer)
            found.append(Access(buffer, memory, (offset,), writes, conditions, extent, fragment))


def _parts(value: Any) -> list[Any]:
    if is_a(value, tir.BinaryOpExpr, tir.CmpExpr, tir.LogicalExpr) and hasattr(value, "b"):
        return [value.a, value.b]
    if is_a(value, tir.Not):
        return [value.a]
    if is_a(value, tir.Cast, tir.Broadcast):
        return [value.value]
    if is_a(value, tvm.ir.Call):
        return list(value.args)
    return []
