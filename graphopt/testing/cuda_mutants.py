"""Lowered GPU kernels with one fault each: an index off by one, a barrier or a wait gone, a wait that is too short.

::

    for mutant in mutants(loops, synchronised):
        print(mutant.kind, mutant.text, seen(mutant))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from graphopt.targets.cuda import checks
from graphopt.targets.cuda.checks.lowered import synchronised

_OF_LOOPS = ("index", "fragment")
KINDS = (*_OF_LOOPS, "barrier", "wait", "short wait")
_WAIT = "async_wait_inflight_count"
_POINTER = "tirx.tvm_access_ptr"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """`text`: the statement as it is now. `loops` is None where the fault is in the barriers, which come later;
    `synchronised` where TVM refuses to lower it."""

    kind: str
    text: str
    loops: Any | None
    synchronised: Any | None


def mutants(loops: Any, with_barriers: Any, kinds: Collection[str] = KINDS) -> Iterator[Mutant]:
    """Every mutant of a kernel, given as `graphopt.targets.cuda.checks.lowered` has it at its two stages.

    Of one whose index is off, barriers are put in anew, as they would be were it the schedule's mistake.
    """
    for kind in kinds:
        change = _CHANGES[kind]
        if kind in _OF_LOOPS:
            for mutant, text in _each(loops, change):
                yield Mutant(kind, text, mutant, _lowered(mutant))
        else:
            for mutant, text in _each(with_barriers, change):
                yield Mutant(kind, text, None, mutant)


def _lowered(loops: Any) -> Any | None:
    try:
        return synchronised(loops)
    except tvm.error.InternalError:
        return None


def seen(mutant: Mutant) -> str:
    """What the static checks say of a mutant: a fault's sentence, or what they can't prove any more; else empty."""
    if mutant.synchronised is None:
        return "TVM refuses it"
    races = checks.check_races(mutant.synchronised)
    bounds = checks.check_bounds(mutant.loops) if mutant.loops is not None else None
    return next(iter([*(bounds.faults if bounds else []), *races.faults, *(bounds.open if bounds else [])]), "")


Change = Callable[[Callable[[], bool], list[Any]], list[Any]]
"""Given a function that says of each place whether it is the one to change, and a list for what stands there then: the
callbacks of `structural_map`."""


def _each(function: Any, change: Change) -> Iterator[tuple[Any, str]]:
    """`function` with each place changed in turn, and what it says there."""
    wanted = 0
    while True:
        passed, changed = 0, list[Any]()

        def is_wanted(at: int = wanted) -> bool:
            nonlocal passed
            passed += 1
            return passed - 1 == at

        mutant = tvm_ffi.structural_map(function, change(is_wanted, changed))
        if not changed:
            return
        yield mutant, " ".join(str(changed[0]).split())[:200]
        wanted += 1


def _index(is_wanted: Callable[[], bool], changed: list[Any]) -> list[Any]:
    def off_by_one(indices: Any) -> tuple[list[Any], bool]:
        made, here = list(indices), False
        for axis, index in enumerate(made):
            if is_wanted():
                made[axis], here = index + tirx.IntImm(str(index.ty.dtype), 1), True
        return made, here

    def load(found: Any) -> Any:
        indices, here = off_by_one(found.indices)
        made = tirx.BufferLoad(found.source, indices)
        changed.extend([made] * here)
        return made

    def store(found: Any) -> Any:
        indices, here = off_by_one(found.indices)
        made = tirx.BufferStore(found.buffer, found.value, indices)
        changed.extend([f"{found.buffer.name}[{', '.join(map(str, indices))}] ="] * here)
        return made

    return [(tvm.ir.TensorLoad, load), (tirx.BufferStore, store)]


def _fragment(is_wanted: Callable[[], bool], changed: list[Any]) -> list[Any]:
    def call(found: Any) -> Any:
        if str(getattr(found.op, "name", "")) != _POINTER or not is_wanted():
            return found
        kind, data, offset, *rest = found.args
        offset = offset + tirx.IntImm(str(offset.ty.dtype), 1)
        made = tvm.ir.Call(found.op, [kind, data, offset, *rest], ret_ty=found.ty)
        changed.append(made)
        return made

    return [(tvm.ir.Call, call)]


def _barrier(is_wanted: Callable[[], bool], changed: list[Any]) -> list[Any]:
    def statement(found: Any) -> Any:
        if "tvm_storage_sync" not in str(found.value) or not is_wanted():
            return found
        changed.append(found)
        return tirx.Evaluate(tirx.IntImm("int32", 0))

    return [(tirx.Evaluate, statement)]


def _wait(is_wanted: Callable[[], bool], changed: list[Any]) -> list[Any]:
    def attribute(found: Any) -> Any:
        if str(found.attr_key) != _WAIT or not is_wanted():
            return found
        changed.append(f"wait {found.value}")
        return found.body

    return [(tirx.AttrStmt, attribute)]


def _short_wait(is_wanted: Callable[[], bool], changed: list[Any]) -> list[Any]:
    def attribute(found: Any) -> Any:
        if str(found.attr_key) != _WAIT or not is_wanted():
            return found
        changed.append(f"wait {found.value} + 1")
        return tirx.AttrStmt(found.node, found.attr_key, found.value + 1, found.body)

    return [(tirx.AttrStmt, attribute)]


_CHANGES: dict[str, Change] = dict(zip(KINDS, (_index, _fragment, _barrier, _wait, _short_wait), strict=True))
