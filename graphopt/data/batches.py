"""`Batches`: a stream of feeds that can be read again, and the ways to cut one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from graphopt.errors import DataError

Feeds: TypeAlias = dict[str, np.ndarray[Any, Any]]
"""One batch: the value of every model input by name."""


class Batches:
    """Batches of model inputs, read anew on each iteration and never held in memory together.

    `make` returns a fresh iterable of feeds each time it is called. `divisible` says that axis 0 of every
    array counts samples and that the model takes any number of them, so that a batch may be cut in two.
    """

    def __init__(self, make: Callable[[], Iterable[Feeds]], *, divisible: bool = False) -> None:
        self._make = make
        self.divisible = divisible

    def __iter__(self) -> Iterator[Feeds]:
        return iter(self._make())

    def take(self, count: int) -> Batches:
        """The first `count` batches."""

        def first() -> Iterator[Feeds]:
            for _, feeds in zip(range(count), self, strict=False):  # range first: never reads one too many
                yield feeds

        return Batches(first, divisible=self.divisible)

    def pieces(self, largest: int) -> Batches:
        """The same data in batches of at most `largest` samples, where batches are divisible."""
        return Batches(lambda: cut(self, largest), divisible=True) if self.divisible else self

    def split(self, fraction: float) -> tuple[Batches, Batches]:
        """Two disjoint parts: the second holds `fraction` of the data, spread evenly over the stream.

        Item k is held out iff ``floor((k+1)*fraction) > floor(k*fraction)``, where an item is a sample when
        the batches are divisible and a whole batch when they are not. Raises `DataError` if a part is empty.
        """
        if not 0.0 < fraction < 1.0:
            raise DataError(f"Batches.split takes a fraction between 0 and 1, not {fraction}.")

        def part(wanted: bool) -> Iterator[Feeds]:
            k = found = 0
            for feeds in self:
                n = _samples(feeds) if self.divisible else 1
                held = np.array([math.floor((k + i + 1) * fraction) > math.floor((k + i) * fraction) for i in range(n)])
                k += n
                picked = np.flatnonzero(held == wanted)
                found += len(picked)
                if len(picked) == n:
                    yield feeds
                elif len(picked):
                    yield {name: array[picked] for name, array in feeds.items()}
            if not found:
                unit = "samples" if self.divisible else "batches"
                raise DataError(
                    f"The calibration data has {k} {unit}: too few to hold out {fraction:g} of them. Give more data."
                )

        return (
            Batches(lambda: part(False), divisible=self.divisible),
            Batches(lambda: part(True), divisible=self.divisible),
        )


def cut(batches: Iterable[Feeds], largest: int) -> Iterator[Feeds]:
    """Each batch cut along axis 0 into pieces of at most `largest` samples."""
    for feeds in batches:
        n = _samples(feeds)
        for start in range(0, n, largest):
            yield {name: array[start : start + largest] for name, array in feeds.items()}


def regroup(batches: Iterable[Feeds], size: int) -> Iterator[Feeds]:
    """The samples of `batches` (axis 0) in groups of exactly `size`.

    An incomplete group is dropped: at the end, and where the shape of a sample changes.
    """
    held: Feeds = {}
    for feeds in batches:
        if held and all(held[name].shape[1:] == array.shape[1:] for name, array in feeds.items()):
            feeds = {name: np.concatenate([held[name], array]) for name, array in feeds.items()}
        n = _samples(feeds)
        whole = n - n % size
        for start in range(0, whole, size):
            yield {name: array[start : start + size] for name, array in feeds.items()}
        held = {name: array[whole:] for name, array in feeds.items()} if whole < n else {}


def _samples(feeds: Feeds) -> int:
    sizes = {name: len(array) for name, array in feeds.items()}
    if len(set(sizes.values())) != 1:
        listed = ", ".join(f"{name}: {n}" for name, n in sizes.items())
        raise DataError(f"The inputs of one calibration batch disagree on the number of samples ({listed}).")
    return next(iter(sizes.values()))
