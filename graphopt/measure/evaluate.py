"""A metric on labelled, held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.models.base import Evaluation

Feeds = Mapping[str, Any]


def evaluate(run: Callable[[Any], Feeds], evaluation: Evaluation) -> float:
    """The metric of `evaluation` when `run` computes the outputs; batch by batch, so that little is in memory.

    `run` takes a dict of named input arrays and returns one of named output arrays, as `Executable.run` and
    `oracle.Session.run` do.
    """
    from graphopt.progress import track

    def outputs() -> Iterator[dict[str, Any]]:
        for feeds in track(evaluation.feeds(), f"evaluating {evaluation.metric}"):
            yield dict(run(feeds))

    return float(evaluation.score(outputs()))
