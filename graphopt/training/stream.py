"""Mini-batches: the samples of a stream in random order, in groups of one size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from graphopt.data import Batches, Feeds

BUFFER = 1 << 28
"""Bytes of samples held to be drawn from: data within this are shuffled whole, larger ones as they pass by."""
LABELS = "labels:"
"""The name under which labels travel with the inputs."""


def labelled(data: Batches, labels: np.ndarray[Any, Any]) -> Batches:
    """`data` with a label for each sample, in the order of the stream; for each batch where these can't be cut."""
    from graphopt.errors import DataError

    def make() -> Iterator[Feeds]:
        start = 0
        for feeds in data:
            count = len(next(iter(feeds.values()))) if data.divisible else 1
            rows = labels[start : start + count]
            if len(rows) != count:
                raise DataError(f"There are {len(labels)} labels and more samples than that: give one for each.")
            yield {**feeds, LABELS: rows}
            start += count

    return Batches(make, divisible=data.divisible)


def count(data: Batches) -> int:
    """Samples, or batches where these can't be cut."""
    return sum(len(next(iter(feeds.values()))) if data.divisible else 1 for feeds in data)


def minibatches(data: Batches, size: int, generator: np.random.Generator | None) -> Iterator[Feeds]:
    """The data in batches of exactly `size` samples, where these can be cut, in random order if there is a generator.

    Drawn at random, what is left at the end is dropped; in order, the last batch is filled up with the first samples.
    """
    samples = _samples(data)
    if generator is not None:
        samples = _shuffled(samples, generator)
    if not data.divisible:
        yield from samples
        return
    held: list[Feeds] = []
    first: list[Feeds] = []
    for sample in samples:
        held.append(sample)
        if len(first) < size:
            first.append(sample)
        if len(held) == size:
            yield _together(held)
            held = []
    if held and generator is None:
        yield _together([*held, *(first[i % len(first)] for i in range(size - len(held)))])


def mixed(feeds: Feeds, generator: np.random.Generator) -> Feeds:
    """Each sample mixed with another one, ``a x_i + (1 - a) x_j`` (mixup; Zhang et al. 2018)."""
    n = len(next(iter(feeds.values())))
    order, part = generator.permutation(n), generator.random(n, dtype=np.float32)

    def mix(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        a = part.reshape(-1, *[1] * (array.ndim - 1))
        return a * array + (1 - a) * array[order]

    return {name: mix(array) for name, array in feeds.items()}


def _samples(data: Batches) -> Iterator[Feeds]:
    for feeds in data:
        if not data.divisible:
            yield feeds
            continue
        for i in range(len(next(iter(feeds.values())))):
            yield {name: array[i : i + 1] for name, array in feeds.items()}


def _shuffled(samples: Iterable[Feeds], generator: np.random.Generator) -> Iterator[Feeds]:
    held: list[Feeds] = []
    size = 0
    for sample in samples:
        held.append(sample)
        size += sum(array.nbytes for array in sample.values())
        if size > BUFFER:
            at = int(generator.integers(len(held)))
            held[at], held[-1] = held[-1], held[at]
            drawn = held.pop()
            size -= sum(array.nbytes for array in drawn.values())
            yield drawn
    for at in generator.permutation(len(held)):
        yield held[at]


def _together(samples: list[Feeds]) -> Feeds:
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
