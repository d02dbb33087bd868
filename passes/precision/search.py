"""The fastest assignment of precisions that keeps a metric."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphopt.base import Context, Pass
from graphopt.errors import UsageError
from graphopt.passes.correct.twin import float_twin
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.passes.precision.cost import estimate
from graphopt.passes.precision.sensitivity import Noise, sensitivity
from graphopt.passes.weights import is_weighted
from graphopt.pipeline import run

Gains = Callable[[ir.Model, ir.Model, Sequence[str]], Mapping[str, float]]
RETURNS = 8
"""How many nodes are tried anew as integers once enough are float."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One assignment: the nodes left float beside those that no pass could quantize, its metric, and its estimated
    time as a part of the float model's.
    """

    floats: tuple[str, ...]
    metric: float
    time: float


@dataclasses.dataclass
class Search:
    """`frontier`: every assignment that was measured, in order. `chosen`: the fastest within the drop, None if that
    is the float model. `passes`: the pipeline that gives it, `model`: its result. `won`: the time that each node's
    integer form wins; `slower`: nodes left float because it would lose.
    """

    float_metric: float
    frontier: list[Point]
    chosen: Point | None
    passes: list[Pass]
    model: ir.Model
    noises: list[Noise]
    slower: list[str]
    won: Mapping[str, float]

    def report(self) -> dict[str, Any]:
        """JSON-able."""
        from graphopt.pipeline.registry import spec_of

        return {
            "float": self.float_metric,
            "frontier": [dataclasses.asdict(point) for point in self.frontier],
            "chosen": None if self.chosen is None else dataclasses.asdict(self.chosen),
            "pipeline": ",".join(str(spec_of(p)) for p in self.passes),
            "sensitivity": [dataclasses.asdict(noise) for noise in self.noises],
            "slower": self.slower,
            "won": dict(self.won),
        }


def search(
    model: ir.Model,
    passes: Sequence[Pass],
    context: Context,
    measure: Callable[[ir.Model], float],
    max_drop: float,
    time: Callable[[ir.Model], float] = estimate,
    gains: Gains | None = None,
    samples: int = 32,
) -> Search:
    """The fastest choice of nodes to leave float such that ``measure`` falls by at most `max_drop`.

    1. All nodes are integers; then those whose float form is the faster one are float, and stay so unless that was the
       slower model.
    2. The others are ordered by noise at the model's outputs per time won, ``10^(-dB / 10) / (t_float - t_int8)``,
       worst first, and the smallest number of them that has to be float is found by bisection.
    3. The cheapest of those are tried as integers again, one after the other.
    4. Of what was measured and keeps the metric, the fastest is chosen; the float model where none is faster than it.

    Args:
        model: in normal form; left as it is.
        passes: a pipeline with insert-qdq.
        context: with calibration data, which should be other data than `measure` uses.
        measure: the metric of a model; larger is better.
        max_drop: absolute.
        time: of a model with Q/DQ pairs, in any unit; an estimate or measured (`graphopt.measure.mixed`).
        gains: of the quantized model, its float twin and names of nodes, the time that each one's integer form wins;
            default: the difference in `time` when it alone is float.
        samples: how many samples of the calibration data the noise is measured on.

    Raises:
        UsageError: the pipeline has no insert-qdq, or the drop is negative.
    """
    if not any(isinstance(p, InsertQdq) for p in passes):
        raise UsageError("mixed precision needs a pipeline with insert-qdq, such as --preset int8.")
    if max_drop < 0:
        raise UsageError(f"a drop is not negative: {max_drop}.")
    quantized = run(model, passes, context).model
    twin = float_twin(quantized, "mixed precision")
    base = measure(twin)
    noises = sensitivity(quantized, context.needs_calibration("mixed precision"), samples, "mixed precision")
    candidates = [n.node for n in noises if _weighted(quantized, n.node)]
    won = _won(quantized, candidates, time) if gains is None else gains(quantized, twin, candidates)
    order = sorted((n for n in noises if won.get(n.node, 0) > 0), key=lambda n: -(10 ** (-n.output / 10)) / won[n.node])
    tries = _Tries(model, passes, context, measure, time, base - max_drop, time(twin))
    slower = [name for name, gain in won.items() if gain <= 0]
    kept = tries.keeps([])
    if slower:
        kept_without = tries.keeps(slower)
        if tries.frontier[1].time <= tries.frontier[0].time or kept_without > kept:
            kept = kept_without
        else:
            slower = []
    if not kept:
        _fewest(tries, slower, [n.node for n in order], won)
    if tries.best is None or tries.best[0].time >= 1.0:
        without = [p for p in passes if not isinstance(p, InsertQdq)]
        return Search(base, tries.frontier, None, without, twin, noises, slower, won)
    return Search(base, tries.frontier, *tries.best, noises, slower, won)


@dataclasses.dataclass
class _Tries:
    """Every assignment that was measured (`frontier`), and of those whose metric is at least `least` the fastest."""

    model: ir.Model
    passes: Sequence[Pass]
    context: Context
    measure: Callable[[ir.Model], float]
    time: Callable[[ir.Model], float]
    least: float
    whole: float
    frontier: list[Point] = dataclasses.field(default_factory=list[Point])
    best: tuple[Point, list[Pass], ir.Model] | None = None

    def keeps(self, floats: Sequence[str]) -> bool:
        """Measures the model with these nodes left float; whether it keeps the metric."""
        chosen = [_excluding(p, floats) for p in self.passes]
        result = run(self.model, chosen, self.context).model
        share = self.time(result) / self.whole if self.whole else 1.0
        point = Point(tuple(floats), self.measure(result), share)
        self.frontier.append(point)
        kept = point.metric >= self.least - 1e-9
        if kept and (self.best is None or point.time < self.best[0].time):
            self.best = point, chosen, result
        return kept


def _fewest(tries: _Tries, slower: Sequence[str], names: Sequence[str], won: Mapping[str, float]) -> None:
    """How many of `names`, in order, have to be float beside `slower`; the cheapest are tried as integers again."""
    low, high = 0, len(names)  # `low` floats are too few; `high` leave no integers to do harm
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tries.keeps([*slower, *names[:middle]]) else (middle, high)
    if tries.best is None:
        return
    floats = list(names[:high])
    for name in sorted(floats[:-1], key=lambda n: -won[n])[:RETURNS]:
        fewer = [n for n in floats if n != name]
        if tries.keeps([*slower, *fewer]):
            floats = fewer


def _weighted(model: ir.Model, name: str) -> bool:
    return any(node.name == name and is_weighted(node) for node in model.graph)


def _won(quantized: ir.Model, names: Sequence[str], time: Callable[[ir.Model], float]) -> Mapping[str, float]:
    """What each node's integer form wins while all others have theirs."""
    all_names = {str(node.name) for node in quantized.graph}
    whole = time(quantized)
    return {name: time(float_twin(quantized, "mixed precision", keep=all_names - {name})) - whole for name in names}


def _excluding(pass_: Pass, names: Sequence[str]) -> Pass:
    """The same pass, leaving these nodes float if it is insert-qdq."""
    if not isinstance(pass_, InsertQdq):
        return pass_
    return dataclasses.replace(pass_, exclude=(*pass_.exclude, *(glob.escape(name) for name in names)))
