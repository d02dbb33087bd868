"""An estimate of what a graph with QuantizeLinear/DequantizeLinear pairs costs where integers are computed with."""

from __future__ import annotations

import math

import onnx_ir as ir

from graphopt.graph.cost import macs
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.precision.sensitivity import integer_nodes

SPEED_UP = 2.0
"""Integer multiply-accumulates in the time of one in float32."""
PER_BYTE = 1.0
"""What moving a byte costs, in float32 multiply-accumulates."""


def estimate(model: ir.Model) -> float:
    """The time of one run in units of a float32 multiply-accumulate.

    A node that reads dequantized values works on integers, and a Relu or Clip behind it is part of it. A node costs
    its multiply-accumulates and the bytes of its activations, a quarter of them in integers. A pair costs nothing
    between two integer nodes, and a pass over the tensor where it begins or ends between float and integers.
    """
    integers = set(integer_nodes(model.graph))
    total = 0.0
    for node in model.graph:
        if is_onnx(node, "QuantizeLinear"):
            producer = node.inputs[0].producer() if node.inputs[0] is not None else None
            total += 0.0 if producer in integers else 5 * PER_BYTE * _elements(node.outputs[0])
        elif is_onnx(node, "DequantizeLinear"):
            computed = node.inputs[0] is not None and node.inputs[0].producer() is not None
            leaves = any(reader not in integers for reader in node.outputs[0].consumers())
            total += 5 * PER_BYTE * _elements(node.outputs[0]) if computed and leaves else 0.0
        elif _follows(node, integers):
            integers.add(node)
        else:
            values = [v for v in (*node.inputs, *node.outputs) if v is not None and not v.is_initializer()]
            moved = 4 * PER_BYTE * sum(_elements(v) for v in dict.fromkeys(values) if not _constant(v))
            total += macs(node) / SPEED_UP + moved / 4 if node in integers else macs(node) + moved
    return total


def _follows(node: ir.Node, integers: set[ir.Node]) -> bool:
    if not is_onnx(node, "Relu", "Clip") or node.inputs[0] is None or node in integers:
        return False
    return node.inputs[0].producer() in integers


def _constant(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and all(v is None or v.is_initializer() for v in producer.inputs)


def _elements(value: ir.Value) -> int:
    return 0 if value.shape is None else math.prod(d if isinstance(d, int) else 1 for d in value.shape)
