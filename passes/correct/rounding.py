"""Choose the integers of quantized weights layer by layer, so that each layer's output stays near the float one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.base import Context, Report
from graphopt.graph import remove_unused
from graphopt.passes.correct.quantized import QuantizedWeight, quantized_weights, store
from graphopt.passes.correct.rows import data_index, from_matrix, sample_rows, to_matrix
from graphopt.passes.correct.twin import float_twin
from graphopt.passes.correct.walk import Walk, sample
from graphopt.passes.weights import matches
from graphopt.progress import track

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One group of one layer: integers q [N, K] in ``[lowest, highest]`` for ``V = (q - zero) * scale`` near W.

    The error is ``E|W x - V x~|^2`` with x the float input and x~ the quantized one. `gram` is ``E[x~ x~^T]``, `cross`
    ``W E[x x~^T]``, `power` ``E|W x|^2`` per output.
    """

    weight: Array
    scale: Array
    zero: Array
    lowest: int
    highest: int
    gram: Array
    cross: Array
    power: Array

    def nearest(self) -> Array:
        """Integers by rounding to nearest."""
        return np.clip(np.rint(self.weight / self.scale) + self.zero, self.lowest, self.highest)

    def error(self, q: Array) -> Array:
        """The error of each output: ``power - 2 V . cross + V gram V^T``."""
        v = (q - self.zero) * self.scale
        return self.power - 2 * (v * self.cross).sum(axis=1) + ((v @ self.gram) * v).sum(axis=1)


Solve = Callable[[Problem], "Array | str"]


def round_weights(
    model: ir.Model, context: Context, who: str, solve: Solve, *, samples: int, rows: int, exclude: tuple[str, ...]
) -> Report:
    """Give every quantized weight the integers that `solve` finds, in order of the graph, each layer seeing the
    inputs that the layers before it now give. An output whose error would grow keeps its integers.

    Facts: `signal_to_noise`, by node, of the layer's output on the sampled rows in dB, before and after.
    """
    report = Report()
    feeds = sample(context.needs_calibration(who), samples)
    weights = [w for w in quantized_weights(model.graph, report) if not matches(w.node, exclude)]
    twin = float_twin(model, who)
    if not weights:
        return report
    float_nodes = {node.name: node for node in twin.graph}
    walk, float_walk = Walk(model, feeds), Walk(twin, feeds)
    ratios: dict[str, list[float]] = {}
    for weight in track(weights, who):
        node = weight.node
        index = data_index(node, weight.index)
        if isinstance(index, str) or weight.spec.is_float:
            report.skip(node.name, index if isinstance(index, str) else "float8 has no integers to choose")
            continue
        data, float_data = node.inputs[index], float_nodes[node.name].inputs[index]
        assert data is not None
        assert float_data is not None
        pair = sample_rows(node, weight.array.shape, [walk.at(data), float_walk.at(float_data)], rows, context.seed)
        found = _solve_layer(weight, pair[0], pair[1], solve)
        if isinstance(found, str):
            report.skip(node.name, found)
            continue
        q, ratios[str(node.name)] = found
        changed = store(weight, from_matrix(node, q, weight.array.shape))
        before, after = ratios[str(node.name)]
        report.change(node.name, f"{changed} of {q.size} integers changed: {before:.1f} dB became {after:.1f} dB")
    remove_unused(model)
    report.facts["signal_to_noise"] = ratios
    return report


def _solve_layer(weight: QuantizedWeight, x: Array, x_float: Array, solve: Solve) -> tuple[Array, list[float]] | str:
    if not (np.isfinite(x).all() and np.isfinite(x_float).all()):
        return "its input is not finite on the calibration data"
    node = weight.node
    w, scale, zero, old = (
        to_matrix(node, a) for a in (weight.array.astype(np.float64), weight.scale, weight.zero_point, weight.integers)
    )
    result, errors, signal = old.astype(np.float64), np.zeros(2), 0.0
    for g in range(len(w)):
        n = x.shape[1]
        gram, cross = x[g].T @ x[g] / n, w[g] @ (x_float[g].T @ x[g] / n)
        power = np.square(x_float[g] @ w[g].T).mean(axis=0)
        problem = Problem(w[g], scale[g], zero[g], weight.spec.lowest, weight.spec.highest, gram, cross, power)
        q = solve(problem)
        if isinstance(q, str):
            return q
        before, after = problem.error(result[g]), problem.error(q)
        result[g] = np.where((after < before)[:, None], q, result[g])
        errors += before.sum(), np.minimum(before, after).sum()
        signal += power.sum()
    decibels = 10 * np.log10(max(signal, 1e-300) / np.maximum(errors, 1e-300))
    return result, [float(d) for d in decibels]
