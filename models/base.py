"""What a reference model is: where it comes from, what to feed it, and how well it does on labelled data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from graphopt.errors import DataError

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
Split = Literal["evaluation", "calibration", "selection"]


@dataclass(frozen=True)
class Evaluation:
    """Labelled samples and the metric on them; never used for calibration or training.

    `feeds()` yields prepared inputs batch by batch; `score` takes the model's outputs in that order and
    gives the metric's value in [0, 1]. `n` is the number of labelled samples.
    """

    metric: str
    n: int
    feeds: Callable[[], Iterator[Feeds]]
    score: Callable[[Iterable[Feeds]], float]


@dataclass(frozen=True)
class ReferenceModel:
    """A model that the measurements run on.

    `path()`: builds the .onnx file or fetches it into the cache, raises `FetchError`.
    `example(batch)`: feeds with realistic values for latency runs; where the model's batch is static, of 1.
    `calibration()`: unlabelled feeds, iterable again and again, disjoint from the evaluation by construction.
    `baseline`: the float model's metric as measured, which the tests reproduce.
    `unlabelled(n)`: at most n samples for passes that fit many weights, disjoint from the evaluation; None where
    `calibration` is all there is.
    `selection()`: labelled samples to choose budgets and candidates by, disjoint from the evaluation and from
    `unlabelled`, so that what is reported was not chosen on the data it is reported on.
    `agreement()`: where there are few labels: more samples than those of `evaluation`, the labels being the answers
    of the float model itself.
    """

    name: str
    summary: str
    licence: str
    source: str
    path: Callable[[], Path]
    example: Callable[[int], Feeds]
    calibration: Callable[[], Iterable[Feeds]] | None
    evaluation: Callable[[], Evaluation] | None
    baseline: float | None
    unlabelled: Callable[[int], Iterable[Feeds]] | None = None
    selection: Callable[[], Evaluation] | None = None
    agreement: Callable[[], Evaluation] | None = None


def batches(name: str, samples: Array, size: int) -> Iterator[Feeds]:
    """`samples` (leading axis = samples) as feeds of the input `name`, `size` at a time, the last shorter."""
    for start in range(0, len(samples), size):
        yield {name: samples[start : start + size]}


def accuracy(outputs: Iterable[Feeds], output: str, labels: Array) -> float:
    """Top-1 accuracy: the share of samples whose largest score, output (n, classes), is at the label (n,).

    Raises `DataError` when the outputs are not as many as the labels: a truncated run is not a result.
    """
    predicted = np.concatenate([np.asarray(batch[output]).argmax(axis=-1).reshape(-1) for batch in outputs])
    if len(predicted) != len(labels):
        raise DataError(f"{len(predicted)} predictions came for {len(labels)} labels: run the whole set.")
    return float((predicted == labels).mean())
