"""Pairs of layers whose channels can be rescaled against each other."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array, used_once
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.weights import find_weight, input_axis, output_axis

Array = np.ndarray[Any, Any]

HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
"""``f(s x) = s f(x)`` for s > 0, channel by channel."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """`first` feeds `second` alone, through operators that scale with their input."""

    first: ir.Node
    second: ir.Node


def find_pair(node: ir.Node) -> Pair | str:
    """The pair that `node` (Conv or Gemm) is the first of, or why there is none."""
    reason = _unfit(node)
    if reason is not None:
        return reason
    value = node.outputs[0]
    while True:
        if value.is_graph_output():
            return f"{value.name!r} is an output of the graph"
        if not used_once(value):
            return f"{value.name!r} is read by {len(value.uses())} nodes"
        ((reader, index),) = value.uses()
        if is_onnx(reader, "Conv", "Gemm") and index == 0:
            reason = _unfit(reader)
            return reason if reason is not None else Pair(node, reader)
        if reader.graph is not node.graph or not (is_onnx(reader, *HOMOGENEOUS) or _is_relu(reader)):
            return f"{reader.op_type} {reader.name!r} between the layers does not scale with its input"
        value = reader.outputs[0]


def _unfit(node: ir.Node) -> str | None:
    weight = find_weight(node)
    root = None if weight is None else constant_array(weight.root)
    if weight is None or root is None or weight.root is not node.inputs[1]:
        return f"the weight of {node.name!r} is not a plain constant"
    if not used_once(weight.root):
        return f"other nodes read the weight of {node.name!r} too"
    if root.dtype != np.float32 or not root.size or not np.isfinite(root).all():
        return f"the weight of {node.name!r} is not finite float32"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant_array(node.inputs[2])
        if bias is None or bias.ndim != 1 or len(bias) != root.shape[output_axis(weight) or 0]:
            return f"the bias of {node.name!r} is not one constant per channel"
    if node.attributes.get_int("transA", 0):
        return f"{node.name!r} has transA"
    return None


def _is_relu(node: ir.Node) -> bool:
    """A Clip from 0 without an upper bound. With one, as in ReLU6, a rescaled channel would be cut elsewhere."""
    low, high = (node.inputs[i] if len(node.inputs) > i else None for i in (1, 2))
    array = constant_array(low)
    return is_onnx(node, "Clip") and high is None and array is not None and not array.any()


def by_output(node: ir.Node, weight: Array) -> Array:
    """The weight with output channels first, [outputs, -1]; a view."""
    found = find_weight(node)
    assert found is not None
    axis = output_axis(found)
    assert axis is not None
    return np.moveaxis(weight, axis, 0)


def by_input(node: ir.Node, weight: Array) -> Array:
    """The weight with input channels first, as [groups, inputs of a group, ...]; a view."""
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        return np.moveaxis(split, 2, 1)
    found = find_weight(node)
    assert found is not None
    axis = input_axis(found)
    assert axis is not None
    return np.moveaxis(weight, axis, 0)[None]
