"""Delta debugging: the smallest part of a list that still fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


def ddmin(items: Sequence[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """A part of `items`, in order, that fails and of which no single item can be left out.

    Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002): chunks alone, then all but a
    chunk, then finer chunks. ``fails(items)`` is taken to be true; the empty list is never tried.
    """
    kept, parts = list(items), 2
    while len(kept) > 1:
        chunks = _chunks(kept, parts)
        smaller = next((c for c in chunks if fails(c)), None)
        if smaller is not None:
            kept, parts = smaller, 2
            continue
        rests = [[x for j, chunk in enumerate(chunks) if j != i for x in chunk] for i in range(len(chunks))]
        smaller = next((rest for rest in rests if len(chunks) > 2 and fails(rest)), None)
        if smaller is not None:
            kept, parts = smaller, max(parts - 1, 2)
        elif parts < len(kept):
            parts = min(2 * parts, len(kept))
        else:
            break
    return kept


def window(items: Sequence[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """The shortest prefix of `items` that fails, found by halving, then its shortest suffix: few checks, coarse.

    Where failing is not monotonic, some prefix and suffix that do fail.
    """
    ends = _halve(len(items), lambda n: fails(list(items[:n])))
    head = list(items[:ends])
    return head[len(head) - _halve(len(head), lambda n: fails(head[len(head) - n :])) :]


def _halve(size: int, bad: Callable[[int], bool]) -> int:
    """An n with ``bad(n)`` (or `size`), such that n - 1 is good as far as it was tried."""
    low, high = 0, size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bad(middle) else (middle, high)
    return high


def _chunks(items: list[T], parts: int) -> list[list[T]]:
    bounds = [len(items) * k // parts for k in range(parts + 1)]
    return [items[a:b] for a, b in pairwise(bounds) if b > a]
