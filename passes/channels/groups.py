"""Units that are taken out as a whole, and the groups of units that do the same work."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import networkx as nx
import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.channels.axes import Axes
from graphopt.passes.channels.rules import follow
from graphopt.passes.weights import find_weight, input_axis, is_weighted, output_axis

Array: TypeAlias = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A weighted node with a constant weight. `weight`: its float value as the node reads it.

    `inputs`, `outputs`: the unit of each index along the weight's axes of input and output channels; None where
    nothing can be taken out, or where no one axis counts them.
    """

    node: ir.Node
    index: int
    weight: Array
    input_axis: int | None
    output_axis: int | None
    inputs: Array | None
    outputs: Array | None


@dataclasses.dataclass(frozen=True)
class Group:
    """Units that take an index of the same axes of the same constants: they could change places.

    `name`: the node whose weight makes the channels. `layers`: all nodes that have a weight among these constants.
    """

    name: str
    units: Array
    layers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Channels:
    """What can be taken out of a graph. `unit` maps ids of `axes` to units; `groups` are those that can be pruned.

    `fixed`: by name of a group that can't be, why.
    """

    axes: Axes
    unit: Array
    count: int
    groups: list[Group]
    fixed: dict[str, str]
    layers: list[Layer]


def find_channels(graph: ir.Graph) -> Channels:
    """Follow the channels through `graph` and find the units and groups."""
    axes = follow(graph)
    unit = np.zeros(axes.count, np.int64)
    count = 0
    for part in nx.connected_components(axes.ties):
        unit[list(part)] = count
        count += 1
    reasons: dict[int, str] = {}
    for one, why in axes.reasons.items():
        reasons.setdefault(int(unit[one]), why)
    layers = [layer for node in graph if (layer := _layer(axes, unit, node)) is not None]
    slots = _slots(axes, unit, count)
    makers, touched = _names(layers)
    groups: list[Group] = []
    fixed: dict[str, str] = {}
    alike: dict[frozenset[int], list[int]] = {}
    for one, slot in enumerate(slots):
        alike.setdefault(frozenset(slot), []).append(one)
    for units in alike.values():
        makes = makers.get(units[0])
        if makes is None:  # not the channels of any layer's result
            continue
        why = next((reasons[one] for one in units if one in reasons), None)
        free = [one for one in units if one not in reasons]
        if why is not None:
            fixed.setdefault(makes, why)
        if free:
            groups.append(Group(makes, np.array(free), tuple(touched.get(free[0], ()))))
    return Channels(axes, unit, count, groups, fixed, layers)


def _slots(axes: Axes, unit: Array, count: int) -> list[list[int]]:
    """For each unit, the axes of constants that it takes an index of, numbered."""
    found: list[list[int]] = [[] for _ in range(count)]
    number = 0
    for value in axes.constants:
        for ids in axes.of[value]:
            number += 1
            for one in () if ids is None else np.unique(unit[ids]).tolist():
                found[one].append(number)
    return found


def _names(layers: list[Layer]) -> tuple[dict[int, str], dict[int, list[str]]]:
    """By unit: the first node that makes it, and all nodes with weights that have it."""
    makers: dict[int, str] = {}
    touched: dict[int, list[str]] = {}
    for layer in layers:
        for units in (layer.outputs, layer.inputs):
            for one in () if units is None else np.unique(units).tolist():
                if units is layer.outputs:
                    makers.setdefault(one, str(layer.node.name))
                names = touched.setdefault(one, [])
                if str(layer.node.name) not in names:
                    names.append(str(layer.node.name))
    return makers, touched


def _layer(axes: Axes, unit: Array, node: ir.Node) -> Layer | None:
    if not is_weighted(node) or node.outputs[0] not in axes.of:
        return None
    found = find_weight(node)
    index = 1 if found is None else found.index
    operand = node.inputs[index]
    assert operand is not None
    weight = _value(operand)
    if weight is None or operand not in axes.of:
        return None
    dims = axes.of[operand]
    into, out = (None, None) if found is None else (input_axis(found), output_axis(found))
    if found is None:  # behind a DequantizeLinear: Conv, or a matrix on the right
        into, out = (1, 0) if node.op_type == "Conv" or node.attributes.get_int("transB", 0) else (0, 1)
    if node.op_type == "Conv" and node.attributes.get_int("group", 1) > 1:
        into = None
    inputs, outputs = (None if k is None or dims[k] is None else unit[dims[k]] for k in (into, out))
    return Layer(node, index, weight, into, out, inputs, outputs)


def _value(operand: ir.Value) -> Array | None:
    """A constant, maybe transposed, or dequantized from integers, as floats."""
    array = constant_array(operand)
    if array is not None:
        return array
    node = operand.producer()
    if node is None or not is_onnx(node, "DequantizeLinear", "Transpose", "Identity"):
        return None
    before = None if node.inputs[0] is None else _value(node.inputs[0])
    if before is None or node.op_type == "Identity":
        return before
    if node.op_type == "Transpose":
        return before.transpose(node.attributes.get_ints("perm", tuple(reversed(range(before.ndim)))))
    scale = constant_array(node.inputs[1])
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(())
    if scale is None or zero is None or scale.ndim > 1 or node.attributes.get_int("block_size", 0):
        return None
    axis = node.attributes.get_int("axis", 1) % before.ndim
    shape = [-1 if k == axis else 1 for k in range(before.ndim)] if scale.size > 1 else [1] * before.ndim
    return ((before.astype(np.float32) - zero.reshape(shape).astype(np.float32)) * scale.reshape(shape)).astype(
        np.float32
    )
