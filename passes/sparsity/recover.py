"""Prune layer by layer in order of the graph, each making up for its own zeros and for the layers before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.base import Report
from graphopt.data import Feeds
from graphopt.graph import constant_array, used_once
from graphopt.passes.correct.bias import shift_bias
from graphopt.passes.correct.rows import ELEMENTS, from_matrix, sample_rows, to_matrix
from graphopt.passes.correct.walk import Walk
from graphopt.passes.sparsity.layers import Layer
from graphopt.passes.sparsity.refit import Fit, refit, split
from graphopt.progress import track

Array = np.ndarray[Any, Any]

Zeros = Callable[[Array, float, Layer], Array]
"""Scores as the constant lies, how far pruning is (1: all of it), and its layer -> True where weights go."""
Score = Callable[[Fit, Array, Layer], Array]
"""A group's fit and its weights [N, K] -> how much each matters."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How layers are pruned: `zeros` by `score`, in `steps`, on at most `rows` rows of each input.

    `refit`: whether what stays makes up for what goes; else the activations only say what goes.
    """

    zeros: Zeros
    score: Score
    steps: int
    rows: int
    refit: bool
    seed: int


def recover(
    model: ir.Model, layers: Sequence[Layer], feeds: Sequence[Feeds], how: Schedule, report: Report
) -> Mapping[str, list[float]]:
    """Prune the `layers` (all of them can be refitted) such that each gives what it gave in the model as it is.

    With W and x' the layer's weight and input before, and x its input now: ``min_V,b E|W x' - V x - b|^2`` over V with
    zeros where the mask has them, on sampled positions. b goes where the layer has a bias. Between steps the mask is
    chosen anew from the refitted weights; a zero stays one. Returns by node the part of its output's power that is
    missed with the mask alone, and after the refit, on rows kept out of it.
    """
    teacher = model.clone()
    twins = {node.name: node for node in teacher.graph}
    walk, before = Walk(model, feeds), Walk(teacher, feeds)
    errors: dict[str, list[float]] = {}
    order = {node: k for k, node in enumerate(model.graph)}
    for layer in track(sorted(layers, key=lambda one: order[one.weights[0].node]), "Pruning layers"):
        node = layer.weights[0].node
        x, original = walk.at(_data(node)), before.at(_data(twins[node.name]))
        if not all(np.isfinite(a).all() for a in [*x, *original]):
            layer.put(np.where(how.zeros(np.abs(layer.array), 1.0, layer), 0, layer.array))
            report.skip(node.name, "not refitted: its input is not finite on the calibration data")
            continue
        errors[str(node.name)] = _solve(model.graph, layer, x, original, how)
    return errors


def _data(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _solve(graph: ir.Graph, layer: Layer, x: list[Array], original: list[Array], how: Schedule) -> list[float]:
    weight, node = layer.weights[0], layer.weights[0].node
    permutation = weight.permutation
    assert permutation is not None
    operand = layer.array.transpose(permutation)
    dense = to_matrix(node, operand.astype(np.float32))
    count = max(1, min(how.rows, ELEMENTS // dense[:, 0].size))
    drawn, wanted = (
        [rows.astype(np.float32) for rows in pair]
        for pair in sample_rows(node, operand.shape, [x, original], count, how.seed)
    )
    outputs = [rows @ w.T for rows, w in zip(wanted, dense, strict=True)]
    centred = _has_bias(node, dense.shape[0] * dense.shape[1])
    fits = [split(a, b, centred) for a, b in zip(drawn, outputs, strict=True)]

    def matrices(array: Array) -> Array:
        """The constant's layout -> [groups, N, K]."""
        return to_matrix(node, array.transpose(permutation))

    def constant(matrix: Array) -> Array:
        """The inverse."""
        return from_matrix(node, matrix, operand.shape).transpose(np.argsort(permutation))

    now, alone = dense, 0.0
    for step in range(1, how.steps + 1):  # a weight that went has the least score, zero, and stays away
        scores = np.stack([how.score(fit, v, layer) for fit, v in zip(fits, now, strict=True)])
        kept = matrices(~how.zeros(constant(scores), step / how.steps, layer))
        if step == how.steps:
            alone = _mean([fit.error(np.where(k, w, 0)) for fit, k, w in zip(fits, kept, dense, strict=True)])
        if how.refit:
            now = np.stack([refit(*one) for one in zip(fits, dense, now, kept, strict=True)])
        else:
            now = np.where(kept, now, 0)
    layer.put(constant(now))
    if centred and how.refit:
        shift = [b.mean(axis=0) - v @ a.mean(axis=0) for a, b, v in zip(drawn, outputs, now, strict=True)]
        shift_bias(graph, node, np.concatenate(shift))
    return [alone, _mean([fit.error(v) for fit, v in zip(fits, now, strict=True)])]


def _mean(errors: list[float]) -> float:
    return sum(errors) / len(errors)


def _has_bias(node: ir.Node, channels: int) -> bool:
    """Whether `shift_bias` can move a bias of so many channels."""
    if node.op_type != "MatMul":
        value = node.inputs[2] if len(node.inputs) > 2 else None
    else:
        (output,) = node.outputs
        readers = list(output.uses())
        if not used_once(output) or readers[0].node.op_type != "Add":
            return False
        value = readers[0].node.inputs[1 - readers[0].idx]
    array = constant_array(value)
    return (value is None and node.op_type != "MatMul") or (array is not None and array.shape == (channels,))
