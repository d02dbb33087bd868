"""The smallest budget that keeps a metric, accepted where its program is faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.base import Context, Pass
from graphopt.errors import UsageError
from graphopt.graph.cost import cost
from graphopt.passes.prune_channels import PruneChannels
from graphopt.pipeline import run

if TYPE_CHECKING:
    from graphopt.measure.speedup import Speed

LEAST = 0.03
"""The smallest part of the multiply-accumulates that is looked at."""
FASTER = 0.97
"""A program pays if it takes at most this part of the original's time."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """One budget: what it asked of `prune-channels{macs=...}`, and the result's metric, and multiply-accumulates and
    weights as parts of the original's. `predicted`, `measured`: its program's time as a part of that of the original's,
    of those that keep the metric; `ms` as measured.
    """

    asked: float
    metric: float
    macs: float
    parameters: float
    predicted: float | None = None
    measured: float | None = None
    ms: float | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """`tried`: every budget, in order. `chosen`: the fastest that keeps the metric, None where none of them pays: then
    `model` is what the passes before pruning give. `passes`: the pipeline that gives `model`.
    """

    original_metric: float
    tried: list[Tried]
    chosen: Tried | None
    passes: list[Pass]
    model: ir.Model

    def report(self) -> dict[str, Any]:
        """JSON-able."""
        from graphopt.pipeline.registry import spec_of

        return {
            "original": self.original_metric,
            "tried": [dataclasses.asdict(one) for one in self.tried],
            "chosen": None if self.chosen is None else dataclasses.asdict(self.chosen),
            "pipeline": ",".join(str(spec_of(p)) for p in self.passes),
        }


def search(
    model: ir.Model,
    passes: Sequence[Pass],
    context: Context,
    measure: Callable[[ir.Model], float],
    max_drop: float,
    beside: Callable[[ir.Model], Callable[[ir.Model], Speed]],
    tries: int = 5,
) -> Found:
    """The smallest part of the multiply-accumulates with which `measure` falls by at most `max_drop`.

    1. `macs` of prune-channels is bisected, in equal ratios; its other options, such as `parameters`, hold as they are.
       The passes behind it, which may recover or quantize, run in each try.
    2. The programs of those that keep the metric are timed beside the original's.
    3. The fastest is chosen if it takes at most `FASTER` of the original's time.

    Args:
        model: in normal form; left as it is.
        passes: a pipeline with one prune-channels. What those before it give is the original.
        context: with calibration data, which should be other data than `measure` uses.
        measure: the metric of a model; larger is better.
        max_drop: absolute.
        beside: given the original, what times a candidate beside it; see `graphopt.measure.speedup`.
        tries: how many budgets; the smallest is found to within a ratio of ``LEAST ** -(1 / 2 ** tries)``.

    Raises:
        UsageError: not one prune-channels, one with a ratio, or a negative drop.
    """
    where = [i for i, p in enumerate(passes) if isinstance(p, PruneChannels)]
    if len(where) != 1:
        raise UsageError(f"the search for a budget needs a pipeline with one prune-channels, not {len(where)}.")
    pruning = passes[where[0]]
    assert isinstance(pruning, PruneChannels)
    if pruning.ratio is not None:
        raise UsageError("the search finds macs of prune-channels: leave its ratio out.")
    if max_drop < 0:
        raise UsageError(f"a drop is not negative: {max_drop}.")
    before, after = list(passes[: where[0]]), list(passes[where[0] + 1 :])
    original = run(model, before, context).model
    base = measure(original)
    tried: list[Tried] = []
    kept: dict[int, tuple[list[Pass], ir.Model]] = {}
    low, high = LEAST, 1.0
    for index in range(tries):
        asked = float(f"{(low * high) ** 0.5:.3g}")
        chosen = [dataclasses.replace(pruning, macs=asked), *after]
        result = run(original, chosen, context).model
        tried.append(_tried(asked, original, result, measure(result)))
        if tried[-1].metric >= base - max_drop - 1e-9:
            kept[index], high = ([*before, *chosen], result), asked
        else:
            low = asked
    if kept:
        timed = beside(original)
        for index, (_, result) in kept.items():
            tried[index] = dataclasses.replace(tried[index], **dataclasses.asdict(timed(result)))
    best = min(kept, key=lambda index: tried[index].measured or 1.0, default=None)
    if best is None or (tried[best].measured or 1.0) > FASTER:
        return Found(base, tried, None, before, original)
    return Found(base, tried, tried[best], *kept[best])


def _tried(asked: float, original: ir.Model, result: ir.Model, metric: float) -> Tried:
    now, whole = cost(result), cost(original)
    return Tried(asked, metric, now.macs / max(whole.macs, 1), now.parameters / max(whole.parameters, 1))
