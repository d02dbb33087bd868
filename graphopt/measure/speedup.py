"""How long candidates take beside the program of one original: as predicted from its profile, and as measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.api import compile as build
from graphopt.graph.cost import macs
from graphopt.measure.latency import bench
from graphopt.measure.profile import RUNTIME, profile

if TYPE_CHECKING:
    from graphopt.base import Target

SECONDS = 1.0
"""How long a candidate and the original take turns."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """A candidate's time as a part of the original's: `predicted`, `measured` (one run on `feeds`), and in ms."""

    predicted: float | None
    measured: float
    ms: float


class Beside:
    """The compiled original, and its profile where the target is a CPU."""

    def __init__(self, model: ir.Model, target: Target, feeds: Mapping[str, Any]) -> None:
        """Compile `model` as it is for `target`.

        Raises:
            LoweringError: the target can't compile it.
            DataError: `feeds` doesn't fit.
        """
        self._target, self._feeds, self._work = target, feeds, _work(model)
        self._program = build(model, target, verify=False)
        self._kernels, self.ms = [], 0.0
        if self._program.manifest.device == "cpu":
            self._kernels, self.ms = profile(self._program, feeds, seconds=SECONDS)

    def speed(self, candidate: ir.Model) -> Speed:
        """Compile `candidate`, and let it and the original take turns."""
        with build(candidate, self._target, verify=False) as program:
            runners = {"original": self._program.run, "candidate": program.run}
            _, row = bench(runners, self._feeds, seconds=SECONDS)
        return Speed(self.predict(candidate), 1 / row.ratio, row.median_ms)

    def predict(self, candidate: ir.Model) -> float | None:
        """Each kernel's time in proportion to the work that is left of its nodes; all else as it was.

        Work is multiply-accumulates, of nodes without any the elements of their outputs. What the profiler adds to
        each call, the sum over kernels less the time of a run without it, is taken off first.
        """
        if not self._kernels:
            return None
        calls = sum(kernel.calls for kernel in self._kernels)
        added = max(sum(kernel.ms for kernel in self._kernels) - self.ms, 0.0) / calls
        now, saved = _work(candidate), 0.0
        for kernel in self._kernels:
            if kernel.name == RUNTIME:
                continue
            pairs = [(self._work[name], now.get(name, (0, 0))) for name in kernel.nodes if name in self._work]
            kind = 0 if any(before[0] for before, _ in pairs) else 1
            whole, left = sum(before[kind] for before, _ in pairs), sum(after[kind] for _, after in pairs)
            if whole:
                saved += max(kernel.ms - kernel.calls * added, 0.0) * (1 - left / whole)
        return 1 - saved / self.ms


def _work(model: ir.Model) -> dict[str, tuple[int, int]]:
    """By node the multiply-accumulates, and the elements of its outputs."""
    return {str(node.name): (macs(node), sum(_elements(value) for value in node.outputs)) for node in model.graph}


def _elements(value: ir.Value) -> int:
    return 0 if value.shape is None else math.prod(d if isinstance(d, int) else 1 for d in value.shape)
