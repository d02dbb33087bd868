"""Where Q/DQ pairs stand, decided from the operators that compute with integers backwards, by a target's `Rules`.

1. The chosen Conv, ConvTranspose, Gemm and MatMul nodes need all their inputs quantized.
2. A node of `own_scale` or `same_scale` whose output is needed works on integers as well and needs its inputs: a
   residual Add both, a Concat all of them. It has to have only activations there: an Add of a constant stays
   float, between what feeds it and the pair that follows.
3. No pair stands between a node and the Relu or Clip that alone reads it; the pair follows the Relu.
4. The output of a `same_scale` node, which only moves or picks values, has its input's scale. Concat shares one only
   where it is of `joint_scale`: else a branch keeps its own, so that a small one is not lost before it has to be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import onnx_ir as ir

from graphopt.graph import used_once
from graphopt.passes.quant.rules import Rules
from graphopt.passes.weights import find_weight, matches


@dataclasses.dataclass(frozen=True)
class Placement:
    """`nodes`: those that compute with integers. `scales`: each quantized value, in order of the graph, and the
    value whose statistics give its scale (itself, or the one that a `same_scale` or `joint_scale` node shares it with).
    """

    nodes: frozenset[ir.Node]
    scales: dict[ir.Value, ir.Value]


def place(graph: ir.Graph, chosen: Collection[ir.Node], rules: Rules, exclude: tuple[str, ...] = ()) -> Placement:
    """The placement for the `chosen` weighted nodes of `graph`, which is in topological order.

    Nodes that match `exclude` don't pass integers on.
    """
    needed: set[ir.Value] = set()
    fused: set[ir.Value] = set()
    nodes: set[ir.Node] = set()
    for node in reversed(graph):
        if node in chosen:
            nodes.add(node)
            needed.update(operands(node))
        elif matches(node, exclude):
            continue
        elif any(v in needed or v in fused for v in node.outputs) and _carries_integers(node, rules):
            nodes.add(node)
            if _fuses(node, rules):
                fused.update(data_inputs(node, rules))
            else:
                needed.update(data_inputs(node, rules))
    scales: dict[ir.Value, ir.Value] = {}
    for value in _values(graph):
        if value in needed:
            node = value.producer()
            source = data_inputs(node, rules)[0] if node in nodes and node.op_type in rules.same_scale else value
            scales[value] = scales.get(source, source)
    for node in reversed(graph):
        if node in nodes and node.op_type in rules.joint_scale and node.outputs[0] in scales:
            for value in data_inputs(node, rules):
                if value in scales:
                    _share(scales, scales[value], scales[node.outputs[0]])
    return Placement(frozenset(nodes), scales)


def _share(scales: dict[ir.Value, ir.Value], old: ir.Value, new: ir.Value) -> None:
    for value, source in scales.items():
        if source is old:
            scales[value] = new


def operands(node: ir.Node) -> list[ir.Value]:
    """What a weighted node computes with besides its weight and bias."""
    weight = find_weight(node)
    return [v for i, v in enumerate(node.inputs[:2]) if v is not None and (weight is None or i != weight.index)]


def data_inputs(node: ir.Node, rules: Rules) -> list[ir.Value]:
    """The inputs that hold data, not shapes, bounds or axes."""
    inputs = node.inputs if node.op_type in rules.all_inputs else node.inputs[:1]
    return [v for v in inputs if v is not None]


def concatenated(value: ir.Value, rules: Rules) -> Sequence[ir.Value]:
    """The branches of the Concat that `value` is the output of, directly or through nodes that keep its scale."""
    node = value.producer()
    while node is not None and node.op_type in rules.same_scale | rules.fused and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return data_inputs(node, rules) if node is not None and node.op_type == "Concat" else ()


def _carries_integers(node: ir.Node, rules: Rules) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in rules.integer:
        return False
    inputs = data_inputs(node, rules)
    return bool(inputs) and all(is_float_activation(v) for v in inputs)


def is_float_activation(value: ir.Value) -> bool:
    """Float32, computed at run time, and not the result of a DequantizeLinear."""
    node = value.producer()
    computed = value.is_graph_input() or (node is not None and node.op_type not in ("Constant", "DequantizeLinear"))
    return computed and value.dtype == ir.DataType.FLOAT


def _fuses(node: ir.Node, rules: Rules) -> bool:
    """Is this the activation at the end of the one node that computes its input?"""
    if node.op_type not in rules.fused:
        return False
    (value,) = data_inputs(node, rules)
    producer = value.producer()
    ends = (rules.weighted | rules.own_scale) - rules.fused
    return producer is not None and used_once(value) and producer.op_type in ends


def _values(graph: ir.Graph) -> list[ir.Value]:
    """Initializers, inputs and results, in order of the graph."""
    return [*graph.initializers.values(), *graph.inputs, *(v for node in graph for v in node.outputs)]
