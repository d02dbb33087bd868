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
    where = [i for i, p in enumerate(passes) if isinstance(p, InsertQdq)]
    if not where:
        raise UsageError("mixed precision needs a pipeline with insert-qdq, such as --preset int8.")
    if max_drop < 0:
        raise UsageError(f"a drop is not negative: {max_drop}.")
    quantized = run(model, passes, context).model
    twin = float_twin(quantized, "mixed precision")
    base = measure(twin)
    whole = time(twin)
    batches = context.needs_calibration("mixed precision")
    noises = sensitivity(quantized, batches, samples, "mixed precision")
    candidates = [n.node for n in noises if _weighted(quantized, n.node)]
    won = _won(quantized, candidates, time) if gains is None else gains(quantized, twin, candidates)
    slower = [name for name, gain in won.items() if gain <= 0]
    order = sorted((n for n in noises if won.get(n.node, 0) > 0), key=lambda n: -(10 ** (-n.output / 10)) / won[n.node])
    names = [n.node for n in order]
    frontier: list[Point] = []
    best: tuple[Point, list[Pass], ir.Model] | None = None

    def attempt(floats: Sequence[str]) -> bool:
        nonlocal best
        chosen = _excluding(passes, where, floats)
        result = run(model, chosen, context).model
        point = Point(tuple(floats), measure(result), time(result) / whole if whole else 1.0)
        frontier.append(point)
        kept = point.metric >= base - max_drop - 1e-9
        if kept and (best is None or point.time < best[0].time):
            best = point, chosen, result
        return kept

    kept = attempt([])
    if slower:
        kept_without = attempt(slower)
        if frontier[1].time <= frontier[0].time or kept_without > kept:
            kept = kept_without
        else:
            slower = []
    if not kept:
        low, high = 0, len(names)  # `low` floats are too few; `high` leave no integers to do harm
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if attempt([*slower, *names[:middle]]) else (middle, high)
        floats = names[:high]
        for name in sorted(floats[:-1], key=lambda n: -won[n])[:RETURNS] if best is not None else ():
            fewer = [n for n in floats if n != name]
            if attempt([*slower, *fewer]):
                floats = fewer
    if best is None or best[0].time >= 1.0:
        without = [p for i, p in enumerate(passes) if i not in where]
        return Search(base, frontier, None, without, twin, noises, slower, won)
    return Search(base, frontier, best[0], best[1], best[2], noises, slower, won)


def _weighted(model: ir.Model, name: str) -> bool:
    return any(node.name == name and is_weighted(node) for node in model.graph)


def _won(quantized: ir.Model, names: Sequence[str], time: Callable[[ir.Model], float]) -> Mapping[str, float]:
    """What each node's integer form wins while all others have theirs."""
    all_names = {str(node.name) for node in quantized.graph}
    whole = time(quantized)
    return {name: time(float_twin(quantized, "mixed precision", keep=all_names - {name})) - whole for name in names}


def _excluding(passes: Sequence[Pass], where: Sequence[int], names: Sequence[str]) -> list[Pass]:
    chosen = list(passes)
    for i in where:
        pass_ = chosen[i]
        assert isinstance(pass_, InsertQdq)
        chosen[i] = dataclasses.replace(pass_, exclude=(*pass_.exclude, *(glob.escape(name) for name in names)))
    return chosen
