"""AdaRound: up or down, learned."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.passes.correct.rounding import Problem, round_weights

Array = np.ndarray[Any, Any]

STRETCH = (-0.1, 1.1)
"""gamma and zeta of the rectified sigmoid."""
WARM_UP = 0.2
"""The part of the steps without regularizer."""
BETA = (20.0, 2.0)
"""The regularizer's exponent falls from the first to the second."""
STRENGTH = 0.05
RATE = 0.01
WORK = 1 << 37
"""Multiply-accumulates that a layer may take; its steps are cut to that, and below `FEWEST` it is left."""
FEWEST = 200


@dataclass(frozen=True)
class AdaRound(Pass):
    """Learns for each quantized weight whether to round up or down, so that layers' outputs stay near the float ones.

    steps: of Adam, fewer for layers so large that they would take too long.
    samples: how many calibration samples to run at most; their activations are held in memory.
    rows: how many input rows (image patches of a convolution) a layer sees at most.
    exclude: node names or operators to leave alone, ``*`` allowed.

    Minimises ``E|W x - V x~|^2 + lambda sum(1 - |2 h(v) - 1|^beta)`` over v, where ``V = s (floor(W / s) + h(v))``,
    ``h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)``, x~ the quantized input, and beta falling from 20 to 2 drives h to 0 or
    1 (Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization, equations 21 to 25). The
    expectation is a quadratic form, so a step does not depend on the number of rows. Scales stay. An output whose
    error on the sampled rows would grow keeps its integers. For Conv, Gemm and MatMul, after insert-qdq or a
    weight-only quantization in the same pipeline.
    """

    name: ClassVar[str] = "adaround"
    preserves: ClassVar[Preserves] = LOSSY

    steps: Annotated[int, Field(ge=FEWEST)] = 1000
    samples: Annotated[int, Field(ge=1)] = 64
    rows: Annotated[int, Field(ge=1)] = 8192
    exclude: tuple[str, ...] = ()

    def apply(self, model: ir.Model, context: Context) -> Report:
        """See `round_weights`. Raises `DataError` without calibration data, `PassError` without float weights."""

        def solve(problem: Problem) -> Array | str:
            return adaround(problem, self.steps)

        return round_weights(
            model, context, self.name, solve, samples=self.samples, rows=self.rows, exclude=self.exclude
        )


def adaround(problem: Problem, steps: int) -> Array | str:
    """The integers [N, K], or why they would take too long."""
    n, k = problem.weight.shape
    steps = min(steps, WORK // (n * k * k))
    if steps < FEWEST:
        return f"{n} x {k} weights are too many for adaround; gptq can round them"
    gamma, zeta = STRETCH
    scaled = problem.weight / problem.scale
    floor = np.floor(scaled)
    v = -np.log((zeta - gamma) / (scaled - floor - gamma) - 1)  # h(v) is the fraction: training starts at W
    weigh = k / np.maximum(problem.error(problem.nearest()), np.finfo(np.float64).tiny)[:, None]
    first, second = np.zeros_like(v), np.zeros_like(v)
    for step in range(1, steps + 1):
        sigmoid = 1 / (1 + np.exp(-v))
        h = np.clip(sigmoid * (zeta - gamma) + gamma, 0, 1)
        slope = np.where((h > 0) & (h < 1), (zeta - gamma) * sigmoid * (1 - sigmoid), 0.0)
        weight = np.clip(floor + h + problem.zero, problem.lowest, problem.highest) - problem.zero
        gradient = 2 * weigh * ((weight * problem.scale) @ problem.gram - problem.cross) * problem.scale
        progress = (step / steps - WARM_UP) / (1 - WARM_UP)
        if progress > 0:
            beta = BETA[1] + 0.5 * (BETA[0] - BETA[1]) * (1 + np.cos(np.pi * progress))
            centred = 2 * h - 1
            gradient -= k * STRENGTH * 2 * beta * np.sign(centred) * np.abs(centred) ** (beta - 1)
        gradient *= slope
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        v -= RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    sigmoid = 1 / (1 + np.exp(-v))
    up = np.clip(sigmoid * (zeta - gamma) + gamma, 0, 1) >= 0.5
    return np.clip(floor + up + problem.zero, problem.lowest, problem.highest)
