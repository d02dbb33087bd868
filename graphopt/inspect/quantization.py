"""Which nodes compute on quantized values, and what the weights are stored in."""

from __future__ import annotations

import dataclasses
from typing import Literal

import onnx_ir as ir

from graphopt.graph.cost import constant, macs

State = Literal["float", "integer", "weights", "dynamic", "boundary"]
"""integer: all its data comes dequantized by constant scales, or it is an operator on integers; weights: only its
constants are; dynamic: a scale is computed at run time; boundary: the node itself quantizes or dequantizes.
"""
BOUNDARY = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclasses.dataclass(frozen=True)
class Quantization:
    """`nodes`: how many nodes are in which state; `macs`: multiply-accumulates of these; `weights`: bytes of constants
    by type. `state` is "float" or what most multiply-accumulates of a quantized model are.
    """

    state: State
    nodes: dict[str, int]
    macs: dict[str, int]
    weights: dict[str, int]


def quantization(model: ir.Model) -> tuple[Quantization, dict[ir.Node, State]]:
    """The whole, and the state of each node, subgraphs included."""
    states: dict[ir.Node, State] = {node: _state(node) for node in model.graph.all_nodes()}
    nodes: dict[str, int] = {}
    work: dict[str, int] = {}
    weights: dict[str, int] = {}
    seen: set[ir.Value] = set()
    for node, state in states.items():
        nodes[state] = nodes.get(state, 0) + 1
        work[state] = work.get(state, 0) + macs(node)
        for value in node.inputs:
            tensor = None if value is None or value in seen else constant(value)
            if value is not None and tensor is not None:
                seen.add(value)
                weights[tensor.dtype.name] = weights.get(tensor.dtype.name, 0) + tensor.nbytes
    quantized: list[State] = [s for s in ("integer", "weights", "dynamic") if nodes.get(s)]
    state: State = max(quantized, key=lambda s: (work[s], nodes[s])) if quantized else "float"
    largest_first = dict(sorted(weights.items(), key=lambda item: -item[1]))
    return Quantization(state, nodes, {s: n for s, n in work.items() if n}, largest_first), states


def _state(node: ir.Node) -> State:
    if node.op_type in BOUNDARY:
        return "boundary"
    if node.op_type.startswith("QLinear") or node.op_type == "QGemm":
        return "integer"
    if node.op_type.endswith("Integer"):
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        return "dynamic" if producer is not None and producer.op_type == "DynamicQuantizeLinear" else "integer"
    if node.op_type == "MatMulNBits":
        return "weights"
    sources = [_dequantizer(value) for value in node.inputs if value is not None and constant(value) is None]
    quantized = [source for source in sources if source is not None]
    if not quantized:
        return "float"
    if any(constant(scale) is None for source in quantized for scale in source.inputs[1:2] if scale is not None):
        return "dynamic"
    data = [source for source in quantized if source.inputs[0] is not None and constant(source.inputs[0]) is None]
    return "integer" if data and len(quantized) == len(sources) else "weights" if not data else "float"


def _dequantizer(value: ir.Value) -> ir.Node | None:
    producer = value.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None
