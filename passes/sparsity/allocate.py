"""How many weights of each layer go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data import Feeds
from graphopt.oracle import Session
from graphopt.passes.correct.rows import ELEMENTS, from_matrix, sample_rows, to_matrix
from graphopt.passes.magnitude import smallest
from graphopt.passes.sparsity.layers import Layer
from graphopt.passes.sparsity.patterns import Pattern, block_scores, zeros
from graphopt.progress import track

Array = np.ndarray[Any, Any]

FLOOR = 0.2
"""Of what a layer would keep if all kept the same part: what `by_sensitivity` leaves it at least."""
FEEDS = 4
"""Pieces of the calibration data on which sensitivities are measured."""


def by_threshold(layers: Sequence[Layer], scores: Sequence[Array], pattern: Pattern, sparsity: float) -> list[float]:
    """The sparsity of each layer when all weights with a score below one threshold go."""
    units = [_units(layer, score, pattern) for layer, score in zip(layers, scores, strict=True)]
    return [float(mask.mean()) for mask in smallest(units, sparsity)] if units else []


def by_sensitivity(
    model: ir.Model, layers: Sequence[Layer], pattern: Pattern, sparsity: float, feeds: Sequence[Feeds], seed: int
) -> list[float]:
    """The sparsity of each layer for the least error of the model's outputs, estimated as a sum over the layers.

    A layer's own error is the part of its output's power that its zeros take, ``sum w_j^2 E[x_j^2]`` over them. What
    of that reaches the outputs is measured: each layer is pruned alone, and the change of the model's outputs divided
    by its own error. One threshold on the product then shares the zeros out. A layer keeps at least `FLOOR` of its
    share.
    """
    few = feeds[:FEEDS]
    names = [str(v.name) for v in model.graph.outputs if v.dtype is not None and v.dtype.is_floating_point()]
    inputs = [_input(layer, model.graph) for layer in layers]
    session = Session(model, list(dict.fromkeys([*names, *(n for n in inputs if n is not None)])))
    seen = [session.run(piece) for piece in few]
    scores: list[Array] = []
    for layer, name in zip(track(layers, "Measuring sensitivities"), inputs, strict=True):
        power = _power(layer, None if name is None else [values[name] for values in seen], seed)
        gone = zeros(np.sqrt(power), pattern, sparsity, layer.axes)
        own = float(power[gone].sum() / max(float(power.sum()), 1e-30))
        change = _change(model, layer, gone, few, names, seen)
        sensitivity = change / own if own > 0 else 1.0
        score = power / max(float(power.sum()), 1e-30) * max(sensitivity, 1e-12)
        scores.append(_with_floor(np.sqrt(score), 1 - FLOOR * (1 - sparsity)))
    return by_threshold(layers, scores, pattern, sparsity)


def _units(layer: Layer, score: Array, pattern: Pattern) -> Array:
    if not pattern.is_blocks:
        return score
    sizes = [1] * score.ndim
    for axis, size in zip(layer.axes, (pattern.inputs, pattern.outputs), strict=True):
        assert axis is not None
        sizes[axis] = size
    return block_scores(score, sizes, "l2")


def _with_floor(score: Array, most: float) -> Array:
    """The largest scores beyond `most` of them made so large that they stay."""
    return np.where(smallest([score], most)[0], score, score + np.float32(1e15))


def _input(layer: Layer, graph: ir.Graph) -> str | None:
    value = layer.weights[0].node.inputs[0]
    return None if layer.refused(graph) is not None or value is None else str(value.name)


def _power(layer: Layer, inputs: list[Array] | None, seed: int) -> Array:
    """``w_j^2 E[x_j^2]`` as the constant lies; ``w_j^2`` where the inputs are not known."""
    array = layer.array.astype(np.float32)
    permutation, node = layer.weights[0].permutation, layer.weights[0].node
    if inputs is None or permutation is None:
        return np.square(array)
    operand = array.transpose(permutation)
    matrix = to_matrix(node, operand)
    (rows,) = sample_rows(node, operand.shape, [inputs], min(2048, ELEMENTS // matrix[:, 0].size + 1), seed)
    second = np.broadcast_to(np.square(rows).mean(axis=1)[:, None, :], matrix.shape)
    spread = from_matrix(node, second.astype(np.float32), operand.shape).transpose(np.argsort(permutation))
    return np.square(array) * np.nan_to_num(spread)


def _change(
    model: ir.Model, layer: Layer, gone: Array, feeds: Sequence[Feeds], names: list[str], seen: list[dict[str, Array]]
) -> float:
    """The part of the outputs' power that changes when these weights go."""
    array = layer.array
    layer.put(np.where(gone, 0, array))
    try:
        session = Session(model, names)
        results = [session.run(piece) for piece in feeds]
    finally:
        layer.put(array)
    pairs = [(a[name].astype(np.float64), b[name]) for a, b in zip(seen, results, strict=True) for name in names]
    total = sum(float(np.square(a).sum()) for a, _ in pairs)
    return float(np.nan_to_num(sum(float(np.square(a - b).sum()) for a, b in pairs))) / max(total, 1e-30)
