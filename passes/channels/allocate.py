"""How many channels, and which, each group keeps under a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from graphopt.passes.channels.costs import Term, savings, total
from graphopt.passes.channels.groups import Channels, Group

Array: TypeAlias = np.ndarray[Any, Any]
NEAR = 0.25
"""A multiple is taken instead of the number asked for if it is off by at most this part of it."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What stays: the part `ratio` of the channels; or, of each cost in `limits` (see `costs`), at most so much.

    `minimum`, `multiple`: no group keeps fewer channels; numbers of channels are multiples where one is near.
    """

    ratio: float | None
    limits: Sequence[tuple[Sequence[Term], float]]
    allocation: Literal["uniform", "global"]
    minimum: int
    multiple: int


def rounded(count: int, size: int, budget: Budget) -> int:
    """How many of `size` channels stay where `count` were asked for."""
    count = min(size, max(count, budget.minimum, 1))
    near = round(count / budget.multiple) * budget.multiple
    return near if abs(near - count) <= NEAR * count and max(budget.minimum, 1) <= near <= size else count


def allocate(channels: Channels, scores: Array, budget: Budget) -> Array:
    """Which units stay, a mask.

    Of a group the units of highest score stay, of equal ones the first. "uniform": every group keeps the same part.
    "global": units go in order of their score, or under a budget of costs of their score per cost that goes with them,
    whatever their group; equal ones by turns from the groups.
    """
    if budget.allocation == "uniform":
        counts = _uniform(channels.groups)
        steps = 1 << 12
    else:
        counts = _global(channels, scores, budget)
        steps = sum(len(group.units) for group in channels.groups)

    order = [group.units[np.argsort(-scores[group.units], kind="stable")] for group in channels.groups]

    def sizes(step: int) -> list[int]:
        asked = counts(step / max(steps, 1))
        return [rounded(n, len(units), budget) for n, units in zip(asked, order, strict=True)]

    def mask(kept: list[int]) -> Array:
        keep = np.ones(channels.count, bool)
        for n, units in zip(kept, order, strict=True):
            keep[units[n:]] = False
        return keep

    if budget.ratio is not None:
        return mask(sizes(round(budget.ratio * steps)))

    def fits(kept: list[int]) -> bool:
        keep = mask(kept)
        return all(total(terms, keep) <= most for terms, most in budget.limits)

    low, high = 0, steps  # the most that fits; what the smallest gives where nothing does
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(sizes(middle)) else (low, middle - 1)
    kept = sizes(low)
    step = budget.multiple
    while True:  # what rounding left over goes to those that miss most
        lacking = [k for k, units in enumerate(order) if kept[k] < len(units)]
        if budget.allocation == "uniform":
            lacking.sort(key=lambda k: kept[k] / len(order[k]))
        else:
            lacking.sort(key=lambda k: -scores[order[k][kept[k]]])
        tries = ([*kept[:k], min(kept[k] + step, len(order[k])), *kept[k + 1 :]] for k in lacking)
        more = next((one for one in tries if fits(one)), None)
        if more is None:
            return mask(kept)
        kept = more


Counts = Callable[[float], list[int]]


def _uniform(groups: list[Group]) -> Counts:
    return lambda part: [round(part * len(group.units)) for group in groups]


def _global(channels: Channels, scores: Array, budget: Budget) -> Counts:
    """Counts per group when the part of all units that stays is given: those of highest value."""
    value = scores
    if budget.ratio is None:
        saved = sum((savings(terms, channels.count) for terms, _ in budget.limits), np.zeros(channels.count))
        value = scores / np.maximum(saved, 1e-30)
    every = [(value[group.units], index) for index, group in enumerate(channels.groups)]
    values = np.concatenate([np.sort(v)[::-1] for v, _ in every]) if every else np.zeros(0)
    owner = np.concatenate([np.full(len(v), index) for v, index in every]) if every else np.zeros(0, np.int64)
    place = np.concatenate([np.arange(len(v)) / len(v) for v, _ in every]) if every else np.zeros(0)
    order = np.lexsort((place, -values))

    def counts(part: float) -> list[int]:
        kept = owner[order[: round(part * len(order))]]
        return np.bincount(kept, minlength=len(every)).tolist()

    return counts
