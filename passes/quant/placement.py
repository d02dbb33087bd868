"""Where Q/DQ pairs stand, decided from the operators that compute with integers backwards.

1. The chosen Conv, ConvTranspose, Gemm and MatMul nodes need all their inputs quantized.
2. A node of `OWN_SCALE` or `SAME_SCALE` whose output is needed works on integers as well and needs its inputs: a
   residual Add both, a Concat all of them. It has to have only activations there: an Add of a constant stays
   float, between what feeds it and the pair that follows.
3. No pair stands between a node and the Relu or Clip that alone reads it; the pair follows the Relu.
4. The output of a `SAME_SCALE` node, which only moves or picks values, has its input's scale. Concat does not
   share one: a branch keeps its own, so that a small one is not lost before it has to be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import onnx_ir as ir

from graphopt.graph import used_once
from graphopt.passes.weights import WEIGHTED, find_weight

OWN_SCALE = frozenset({"Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "Resize", "Pad", "Relu", "Clip"})
SAME_SCALE = frozenset(
    {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity"}
    | {"DepthToSpace", "SpaceToDepth"}
)
ACTIVATIONS = frozenset({"Relu", "Clip"})
_ALL_INPUTS = frozenset({"Add", "Mul", "Concat"})


@dataclasses.dataclass(frozen=True)
class Placement:
    """`nodes`: those that compute with integers. `scales`: each quantized value, in order of the graph, and the
    value whose statistics give its scale (itself, or what a SAME_SCALE node took it from).
    """

    nodes: frozenset[ir.Node]
    scales: dict[ir.Value, ir.Value]


def place(graph: ir.Graph, chosen: Collection[ir.Node]) -> Placement:
    """The placement for the `chosen` weighted nodes of `graph`, which is in topological order."""
    needed: set[ir.Value] = set()
    fused: set[ir.Value] = set()
    nodes: set[ir.Node] = set()
    for node in reversed(graph):
        if node in chosen:
            nodes.add(node)
            needed.update(operands(node))
        elif any(v in needed or v in fused for v in node.outputs) and _carries_integers(node):
            nodes.add(node)
            if _fuses(node):
                fused.update(data_inputs(node))
            else:
                needed.update(data_inputs(node))
    scales: dict[ir.Value, ir.Value] = {}
    for value in _values(graph):
        if value in needed:
            node = value.producer()
            source = data_inputs(node)[0] if node in nodes and node.op_type in SAME_SCALE else value
            scales[value] = scales.get(source, source)
    return Placement(frozenset(nodes), scales)


def operands(node: ir.Node) -> list[ir.Value]:
    """What a weighted node computes with besides its weight and bias."""
    weight = find_weight(node)
    return [v for i, v in enumerate(node.inputs[:2]) if v is not None and (weight is None or i != weight.index)]


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs that hold data, not shapes, bounds or axes."""
    inputs = node.inputs if node.op_type in _ALL_INPUTS else node.inputs[:1]
    return [v for v in inputs if v is not None]


def concatenated(value: ir.Value) -> Sequence[ir.Value]:
    """The branches of the Concat that `value` is the output of, directly or through nodes that keep its scale."""
    node = value.producer()
    while node is not None and node.op_type in SAME_SCALE | ACTIVATIONS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return data_inputs(node) if node is not None and node.op_type == "Concat" else ()


def _carries_integers(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in OWN_SCALE | SAME_SCALE:
        return False
    inputs = data_inputs(node)
    return bool(inputs) and all(is_float_activation(v) for v in inputs)


def is_float_activation(value: ir.Value) -> bool:
    """Float32, computed at run time, and not the result of a DequantizeLinear."""
    node = value.producer()
    computed = value.is_graph_input() or (node is not None and node.op_type not in ("Constant", "DequantizeLinear"))
    return computed and value.dtype == ir.DataType.FLOAT


def _fuses(node: ir.Node) -> bool:
    """Is this the activation at the end of the one node that computes its input?"""
    if node.op_type not in ACTIVATIONS:
        return False
    (value,) = data_inputs(node)
    producer = value.producer()
    return producer is not None and used_once(value) and producer.op_type in (WEIGHTED | OWN_SCALE) - ACTIVATIONS


def _values(graph: ir.Graph) -> list[ir.Value]:
    """Initializers, inputs and results, in order of the graph."""
    return [*graph.initializers.values(), *graph.inputs, *(v for node in graph for v in node.outputs)]
