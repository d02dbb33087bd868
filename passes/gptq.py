"""GPTQ: weight rounding that compensates its own error."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.passes.correct.rounding import Problem, round_weights

Array = np.ndarray[Any, Any]

BLOCK = 128
"""Columns whose updates are gathered before the columns behind them are touched."""


@dataclass(frozen=True)
class Gptq(Pass):
    """Rounds quantized weights column by column, each column's error made good by the columns still to come.

    damping: added to the diagonal of the Hessian, as a part of its mean.
    samples: how many calibration samples to run at most; their activations are held in memory.
    rows: how many input rows (image patches of a convolution) a layer sees at most.
    exclude: node names or operators to leave alone, ``*`` allowed.

    With the Hessian ``H = 2 E[x x^T]`` of a layer's output error and the upper Cholesky factor U of its inverse,
    column j is rounded, and ``W[:, k] -= (w_j - dequantize(q_j)) / U_jj * U_jk`` for the columns k after it (Frantar
    et al. 2022, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, algorithm 1).
    Columns go in order of falling ``H_jj``. Scales stay, per tensor, channel or block. An output whose error on the
    sampled rows would grow keeps its integers. For Conv, Gemm and MatMul, after insert-qdq or a weight-only
    quantization in the same pipeline.
    """

    name: ClassVar[str] = "gptq"
    preserves: ClassVar[Preserves] = LOSSY

    damping: Annotated[float, Field(gt=0.0)] = 0.01
    samples: Annotated[int, Field(ge=1)] = 64
    rows: Annotated[int, Field(ge=1)] = 8192
    exclude: tuple[str, ...] = ()

    def apply(self, model: ir.Model, context: Context) -> Report:
        """See `round_weights`. Raises `DataError` without calibration data, `PassError` without float weights."""

        def solve(problem: Problem) -> Array | str:
            return gptq(problem, self.damping)

        return round_weights(
            model, context, self.name, solve, samples=self.samples, rows=self.rows, exclude=self.exclude
        )


def gptq(problem: Problem, damping: float) -> Array:
    """The integers [N, K]."""
    hessian = 2 * problem.gram
    dead = np.diagonal(hessian) <= 0
    hessian = hessian + np.diag(np.where(dead, 1.0, damping * np.diagonal(hessian).mean()))
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    w, scale, zero = (a[:, order].copy() for a in (problem.weight, problem.scale, problem.zero))
    q = np.empty_like(w)
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        errors = np.empty((len(w), stop - start))
        for j in range(start, stop):
            q[:, j] = np.clip(np.rint(w[:, j] / scale[:, j]) + zero[:, j], problem.lowest, problem.highest)
            errors[:, j - start] = (w[:, j] - (q[:, j] - zero[:, j]) * scale[:, j]) / upper[j, j]
            w[:, j + 1 : stop] -= np.outer(errors[:, j - start], upper[j, j + 1 : stop])
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    back = np.empty_like(q)
    back[:, order] = q
    return back
