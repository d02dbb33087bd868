"""Sums over channels as layers: a normalisation that is spelled out reads its channels with weights of one."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, constant_array, derive
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.channels.axes import Opaque
from graphopt.passes.channels.groups import find_channels
from graphopt.passes.channels.operands import integers

Array: TypeAlias = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Sum:
    """A ReduceSum or ReduceMean that is a Gemm for now. `by_input`: its axes are an operand, not an attribute."""

    op_type: str
    channels: int
    keepdims: bool
    by_input: bool

    @property
    def weights(self) -> Array:
        """What the Gemm multiplies by to be this sum, [channels, 1]."""
        share = 1 / self.channels if self.op_type == "ReduceMean" else 1.0
        return np.full((self.channels, 1), share, np.float32)


Sums = dict[str, Sum]
"""By the name that the sum and its Gemm share."""


def as_layers(graph: ir.Graph) -> Sums:
    """Sums and means over the last axis of float matrices (N, C), of which channels could go, become Gemms.

    ``sum_c x_c`` is ``x W`` with W = 1: when channels go, ``sum_c x_c ~ x' W' + b`` is fitted like any layer, so that a
    mean or a variance over all channels is made of those that stay. `as_sums` takes back what was not needed.
    """
    made: Sums = {}
    for node in list(graph):
        found = _read(node)
        if found is not None:
            made[str(node.name)] = found
            _write(graph, node, found)
    if made:
        channels = find_channels(graph)
        free = {unit for group in channels.groups for unit in group.units.tolist()}
        read = {str(layer.node.name): layer.inputs for layer in channels.layers}
        idle = [name for name in made if (units := read.get(name)) is None or free.isdisjoint(units.tolist())]
        _restore(graph, {name: made.pop(name) for name in idle})
    return made


def as_sums(graph: ir.Graph, made: Sums) -> None:
    """Those Gemms that still add up all channels become sums again."""
    layers = {str(node.name): node for node in graph}
    whole: Sums = {}
    for name, old in made.items():
        node = layers.get(name)
        if node is None:
            continue
        weight, bias = (constant_array(value) for value in node.inputs[1:3])
        if weight is not None and bias is not None and np.array_equal(weight, old.weights) and not bias.any():
            whole[name] = old
    _restore(graph, whole)


def _read(node: ir.Node) -> Sum | None:
    """The sum over channels that `node` is, if it is one."""
    x = node.inputs[0] if is_onnx(node, "ReduceSum", "ReduceMean") else None
    if x is None or x.dtype != ir.DataType.FLOAT or x.shape is None or x.shape.rank() != 2:
        return None
    channels = x.shape[1]
    try:
        axes = integers(node, 1, "axes")
    except Opaque:
        return None
    if axes not in ([1], [-1]) or not isinstance(channels, int) or node.outputs[0].is_graph_output():
        return None
    return Sum(node.op_type, channels, bool(node.attributes.get_int("keepdims", 1)), "axes" not in node.attributes)


def _write(graph: ir.Graph, node: ir.Node, found: Sum) -> None:
    x, old = node.inputs[0], node.outputs[0]
    assert x is not None
    assert x.shape is not None
    weight = add_constant(graph, f"{node.name}_ones", found.weights)
    bias = add_constant(graph, f"{node.name}_zero", np.zeros(1, np.float32))
    nodes = [ir.node("Gemm", [x, weight, bias], name=node.name)]
    if not found.keepdims:
        column = nodes[0].outputs[0]
        column.name, column.dtype, column.shape = f"{old.name}_column", ir.DataType.FLOAT, ir.Shape([x.shape[0], 1])
        axes = add_constant(graph, f"{node.name}_axes", np.array([1]))
        nodes.append(ir.node("Squeeze", [column, axes], name=f"{node.name}_row"))
    _swap(graph, [node], nodes)


def _restore(graph: ir.Graph, sums: Sums) -> None:
    for node in list(graph):
        old = sums.get(str(node.name))
        if old is None:
            continue
        gone = [node]
        if not old.keepdims:
            ((squeeze, _),) = node.outputs[0].uses()
            gone.append(squeeze)
        inputs = [node.inputs[0]]
        attributes: dict[str, Any] = {"keepdims": int(old.keepdims)}
        if old.by_input:
            inputs.append(add_constant(graph, f"{node.name}_axes", np.array([1])))
        else:
            attributes["axes"] = [1]
        _swap(graph, gone, [ir.node(old.op_type, inputs, attributes, name=node.name)])


def _swap(graph: ir.Graph, gone: list[ir.Node], made: list[ir.Node]) -> None:
    before, after = gone[-1].outputs[0], made[-1].outputs[0]
    after.name, after.type, after.shape = before.name, before.type, before.shape
    for node in made:
        derive(node, gone)
    ir.convenience.replace_nodes_and_values(graph, gone[-1], gone, made, [before], [after])
