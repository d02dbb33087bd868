"""Latency of several runners in one process, interleaved.

A machine's speed drifts by far more than the differences that matter: by its clock, its neighbours, its caches. So
runners take turns, each round calls every one of them once, in an order that rotates, and what is compared is the
ratio within a round: ``ratio = median over rounds of (baseline's time / this runner's time)``.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphopt.errors import UsageError

Runner = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Latency:
    """One runner's row. Times are milliseconds a call; `p10` and `p90` span the middle 80 % of the rounds.

    `ratio`: median of the baseline's time divided by this runner's, round by round; above 1 it is faster than the
    baseline. `ratio_p10`, `ratio_p90` span the middle 80 % of those.
    """

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    ratio: float
    ratio_p10: float
    ratio_p90: float
    rounds: int


def bench(
    runners: Mapping[str, Runner],
    feeds: Mapping[str, Any],
    *,
    baseline: str | None = None,
    seconds: float = 3.0,
    warmup: int = 3,
    min_rounds: int = 5,
) -> list[Latency]:
    """Time each of `runners` on `feeds`: `warmup` calls of each, then rounds for `seconds`, at least `min_rounds`.

    The runners must use the same number of threads: that is their makers' to see to. `baseline` names the runner that
    ratios refer to (default: the first). Rows come in the order of `runners`.

    Raises:
        UsageError: no runners, or no runner called `baseline`.
    """
    names = list(runners)
    if not names:
        raise UsageError("bench was given nothing to run.")
    reference = names[0] if baseline is None else baseline
    if reference not in names:
        raise UsageError(f"The baseline '{reference}' is not among the runners: {', '.join(names)}.")
    for name in names * warmup:
        runners[name](feeds)
    rounds: list[list[float]] = []
    stop = time.perf_counter() + seconds
    while len(rounds) < min_rounds or time.perf_counter() < stop:
        rounds.append(_round(runners, names, feeds, first=len(rounds) % len(names)))
    times = np.array(rounds) * 1e3
    ratios = times[:, [names.index(reference)]] / times
    return [_row(name, times[:, column], ratios[:, column]) for column, name in enumerate(names)]


def _round(runners: Mapping[str, Runner], names: list[str], feeds: Mapping[str, Any], first: int) -> list[float]:
    """Seconds of one call of each, in the order of `names`; `first` is called first."""
    seconds = [0.0] * len(names)
    for step in range(len(names)):
        column = (first + step) % len(names)
        run = runners[names[column]]
        start = time.perf_counter()
        run(feeds)
        seconds[column] = time.perf_counter() - start
    return seconds


def _row(name: str, times: Any, ratios: Any) -> Latency:
    p10, median, p90 = np.percentile(times, [10, 50, 90]).tolist()
    low, middle, high = np.percentile(ratios, [10, 50, 90]).tolist()
    return Latency(name, median, p10, p90, middle, low, high, len(times))
