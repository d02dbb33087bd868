"""Which elements of shared memory an access touches, for all threads of a block and all rounds of its inner loops."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import tvm

from graphopt.targets.cuda.arch import WARP
from graphopt.targets.cuda.checks.events import Access, Fragment, Loop
from graphopt.targets.cuda.checks.numbers import Array, Unknown, evaluate
from graphopt.targets.cuda.checks.shared import Touch

_INNER = 1 << 14
_OF_WARPS = 1 << 20
"""Above the number of any thread."""


@dataclasses.dataclass(frozen=True)
class Touched:
    """`touch`, or None where `fault` says why not; `whole`: of no inner loop only some rounds were taken."""

    touch: Touch | None = None
    fault: str = ""
    whole: bool = True


def touched(access: Access, values: dict[Any, Array], loops: list[Loop], who: Array, times: int) -> Touched:
    """By `access` in the nest of `loops`, where `values` are for the threads with the numbers `who`.

    `times`: a number that no other access of a warp's to the block's memory has been given.

    Raises:
        Unknown: that depends on what is in memory.
    """
    spread, rounds, whole = _rounds(values, loops)
    shape = (rounds, who.size)
    done = np.ones(shape, bool)
    for condition in access.conditions:
        done = done & np.broadcast_to(evaluate(condition, spread).astype(bool), shape)
    first = np.broadcast_to(evaluate(access.indices[0], spread), shape)
    if access.fragment is None:
        first, by = first[done], np.broadcast_to(who, shape)[done]
        extra = np.arange(int(np.max(evaluate(access.extent, spread))))
    else:
        warps = _of_warps(first, done, who)
        if warps is None:
            return Touched(fault=f"moves a matrix of {access.memory.name} by threads that are not whole warps alike")
        first, extra = warps, _elements(access.fragment, spread)
        by = _OF_WARPS * (1 + times) + np.arange(first.size)
    places = (first[:, None] + extra).reshape(-1)
    unit = _unit(access)
    places, by = (places[:, None] * unit + np.arange(unit)).reshape(-1), np.repeat(by, extra.size * unit)
    if places.size and (places.min() < 0 or places.max() >= math.prod(map(int, access.memory.shape))):
        return Touched(fault=f"{'writes' if access.writes else 'reads'} outside of shared {access.memory.name}")
    return Touched(Touch(access.memory, places, by, access.writes), whole=whole)


def _rounds(values: dict[Any, Array], loops: list[Loop]) -> tuple[dict[Any, Array], int, bool]:
    """The variables of `loops` along a first axis beside `values`, along the last; how many rounds; whether all."""
    extents = [int(np.max(evaluate(loop.extent, values))) for loop in loops]
    total = math.prod(extents)
    whole = total <= _INNER
    rounds = np.arange(total) if whole else np.unique(np.linspace(0, total - 1, _INNER).astype(np.int64))
    spread = dict(values)
    after = [*itertools.accumulate(reversed(extents[1:]), int.__mul__, initial=1)][::-1]
    for loop, extent, size in zip(loops, extents, after, strict=False):
        spread[loop.variable] = (rounds // size % extent)[:, None] + evaluate(loop.start, values)
    return spread, rounds.size, whole


def _of_warps(first: Array, done: Array, who: Array) -> Array | None:
    """The place of each warp that does it, in every round; None where a warp's threads differ in that."""
    if who.size % WARP:
        return None
    order = np.argsort(who)
    place, does = (array[:, order].reshape(len(array), -1, WARP) for array in (first, done))
    if (place != place[:, :, :1]).any() or (does != does[:, :, :1]).any():
        return None
    return place[:, :, 0][does[:, :, 0]]


def _elements(fragment: Fragment, values: dict[Any, Array]) -> Array:
    stride = np.unique(evaluate(fragment.stride, values))
    if stride.size > 1:
        raise Unknown(str(fragment.stride))
    return (np.arange(fragment.rows)[:, None] * stride + np.arange(fragment.columns)).reshape(-1)


def _unit(access: Access) -> int:
    """Elements of the memory in one of the view's."""
    view, memory = (_bits(buffer) for buffer in (access.buffer, access.memory))
    if view % memory:
        raise Unknown(str(access.buffer.name))
    return view // memory


def _bits(buffer: Any) -> int:
    kind = tvm.DataType(str(buffer.dtype))
    return kind.bits * kind.lanes
