"""After channels went: refit the weights of every layer behind, in order of the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.base import Report
from graphopt.data import Feeds
from graphopt.graph import add_constant, constant_array, remove_unused, used_once
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.channels.cut import replace_constant
from graphopt.passes.channels.refit import refit, replacement
from graphopt.passes.correct.bias import channel_axis
from graphopt.passes.correct.rows import ELEMENTS, data_index, from_matrix, sample_rows, to_matrix
from graphopt.passes.correct.walk import Walk
from graphopt.passes.weights import Weight, find_weight, input_axis, is_weighted, output_axis, weight_array
from graphopt.progress import track

Array: TypeAlias = np.ndarray[Any, Any]
Places = dict[str, list["Array | None"]]
"""By name of a constant, for each axis which indices of the original stay; None where all do."""

POSITIONS = 4
"""Times as many positions are looked at for channels alone as for whole patches."""


def recover(
    model: ir.Model, teacher: ir.Model, places: Places, feeds: Sequence[Feeds], rows: int, seed: int, report: Report
) -> None:
    """Set the weights and biases of `model` so that each layer gives what it gives in `teacher`.

    For each weighted node, with x its input here, x' there and W' there:  ``min_W,b |W' x' + b' - W x - b|^2`` over
    the outputs that stay, on sampled positions (He et al. 2017, Channel Pruning for Accelerating Very Deep Neural
    Networks, section 3.1; Luo et al. 2017, ThiNet). Since x is what the layers before give after their own refit,
    errors do not pile up. Facts: `error`, by node the part of the output's variance that is missed, before and after.
    """
    twins = {node.name: node for node in teacher.graph}
    walk, before = Walk(model, feeds), Walk(teacher, feeds)
    errors: dict[str, list[float]] = {}
    for node in track([n for n in model.graph if is_weighted(n)], "Refitting layers"):
        twin = twins[node.name]
        layer = _readable(node, twin)
        if isinstance(layer, str):
            report.skip(node.name, f"not refitted: {layer}")
            continue
        x, original = walk.at(_data(node)), before.at(_data(twin))
        if all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(x, original, strict=True)):
            continue
        if not all(np.isfinite(a).all() for a in [*x, *original]):
            report.skip(node.name, "not refitted: its input is not finite on the calibration data")
            continue
        found = _solve(layer, places, x, original, before.at(twin.outputs[0]), rows, seed)
        errors[str(node.name)] = found
        report.change(node.name, f"refitted: misses {found[1]:.2%} of its output's variance, {found[0]:.2%} before")
    remove_unused(model)
    report.facts["error"] = errors


def _data(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A layer here and in the original, whose weight as the node reads it and bias are `old` and `bias`."""

    node: ir.Node
    weight: Weight
    old: Array
    bias: Array


def _readable(node: ir.Node, twin: ir.Node) -> _Pair | str:
    """The layer here and there; or why it can't be refitted."""
    weight, other = find_weight(node), find_weight(twin)
    old = None if other is None else weight_array(other)
    if weight is None or other is None or old is None or weight.permutation is None:
        return "its weight is not a float constant of its own"
    index = data_index(node, weight.index)
    if isinstance(index, str):
        return index
    if not used_once(weight.root) or not used_once(other.root):
        return "other nodes read its weight too"
    if weight.root.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16):
        return "its weight is not float"
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "alpha or beta is not 1"
    here, bias = _bias(node), _bias(twin)
    if isinstance(here, str) or isinstance(bias, str):
        return here if isinstance(here, str) else str(bias)
    outputs = old.shape[output_axis(other) or 0]
    return _Pair(node, weight, old, np.zeros(outputs) if bias is None else bias)


def _solve(
    layer: _Pair, places: Places, x: list[Array], original: list[Array], wanted: list[Array], rows: int, seed: int
) -> list[float]:
    """Refit one layer in place; its error before and after. `x` and `original` are its inputs here and in the
    original, `wanted` its outputs there.
    """
    node, weight = layer.node, layer.weight
    now = weight_array(weight)
    assert now is not None
    assert weight.permutation is not None
    assert weight.root.dtype is not None
    kept = _kept(places, weight, layer.old.shape)
    out = kept[output_axis(weight) or 0]
    matrices = to_matrix(node, now).astype(np.float64)
    count = max(1, min(rows, ELEMENTS // matrices[:, 0].size))
    (drawn,) = sample_rows(node, now.shape, [x], count, seed)
    own = layer.bias if node.op_type != "MatMul" else np.zeros(len(layer.bias))  # a MatMul's is added behind it
    y = _output_rows(wanted, channel_axis(node), count, seed)[:, out] - own[out]
    y = y.reshape(len(y), len(matrices), -1)
    fits = [
        refit(drawn[g], y[:, g], [matrix, *_combined(layer, kept, x, original, rows, seed)])
        for g, matrix in enumerate(matrices)
    ]
    matrix, bias = np.stack([fit[0] for fit in fits]), np.concatenate([fit[1] for fit in fits]) + layer.bias[out]
    array = np.transpose(from_matrix(node, matrix, now.shape), np.argsort(weight.permutation))
    replace_constant(weight.root, array.astype(weight.root.dtype.numpy()))
    _set_bias(node, bias)
    return [sum(fit[2] for fit in fits) / len(fits), sum(fit[3] for fit in fits) / len(fits)]


def _combined(
    layer: _Pair, kept: list[Array], x: list[Array], original: list[Array], rows: int, seed: int
) -> list[Array]:
    """The original weight times what writes each of its channels by those that are left; nothing if none went."""
    node = layer.node
    if node.op_type == "Conv" and node.attributes.get_int("group", 1) != 1:
        return []
    inputs, out = kept[input_axis(layer.weight) or 0], kept[output_axis(layer.weight) or 0]
    (full,) = to_matrix(node, layer.old)
    taps = int(np.prod(layer.old.shape[2:])) if node.op_type == "Conv" else 1
    cube = full[out].astype(np.float64).reshape(len(out), -1, taps)
    if len(inputs) == cube.shape[1]:
        return []
    axis, count = channel_axis(node), POSITIONS * rows
    combine = replacement(_output_rows(x, axis, count, seed), _output_rows(original, axis, count, seed), inputs)
    return [np.einsum("oct,ck->okt", cube, combine, optimize=True).reshape(len(out), -1)]


def _output_rows(arrays: list[Array], axis: int, count: int, seed: int) -> Array:
    """Rows [at most count, channels] at the places that `sample_rows` draws with the same count and seed."""
    rng = np.random.default_rng(seed)
    share = -(-count // len(arrays))
    drawn: list[Array] = []
    for array in arrays:
        flat = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
        drawn.append(flat[np.sort(rng.choice(len(flat), min(share, len(flat)), replace=False))])
    return np.concatenate(drawn).astype(np.float64)


def _kept(places: Places, weight: Weight, shape: tuple[int, ...]) -> list[Array]:
    """For each axis of the weight as the node reads it, the indices that stay."""
    assert weight.permutation is not None
    own = places.get(str(weight.root.name), [None] * len(shape))
    found = [own[k] for k in weight.permutation]
    return [np.arange(n) if place is None else place for place, n in zip(found, shape, strict=True)]


def _bias_place(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The node and input that a bias of `node` is: its own third, or the constant side of the one Add behind it."""
    if node.op_type != "MatMul":
        return node, 2
    (output,) = node.outputs
    readers = [reader for reader, _ in output.uses()]
    if not used_once(output) or not is_onnx(readers[0], "Add"):
        return None
    index = 1 if readers[0].inputs[0] is output else 0
    array = constant_array(readers[0].inputs[index])
    return (readers[0], index) if array is not None and array.size > 1 and array.size == array.shape[-1] else None


def _bias(node: ir.Node) -> Array | str | None:
    """The bias as float64, None where there is none yet, or why it can't be moved."""
    place = _bias_place(node)
    if place is None:
        return "no bias stands behind it"
    owner, index = place
    value = owner.inputs[index] if index < len(owner.inputs) else None
    if value is None:
        return None
    array = constant_array(value)
    outputs = node.outputs[0].shape
    channels = None if outputs is None else outputs[channel_axis(node)]
    if array is None or array.ndim == 0 or not array.size == array.shape[-1] == channels:
        return "its bias is not one constant per channel"
    return array.reshape(-1).astype(np.float64)


def _set_bias(node: ir.Node, bias: Array) -> None:
    place = _bias_place(node)
    assert place is not None
    assert isinstance(node.graph, ir.Graph)
    owner, index = place
    weight = node.inputs[1]
    assert weight is not None
    assert weight.dtype is not None
    if index >= len(owner.inputs):
        owner.resize_inputs(index + 1)
    owner.replace_input_with(index, add_constant(node.graph, f"{node.name}_bias", bias.astype(weight.dtype.numpy())))
