"""A quantized model as float32: where integers would be slower on a CPU, values between layers are not rounded.

Pairs of QuantizeLinear and DequantizeLinear of activations go away. Where zero is the lowest or highest of what a layer
yields, that may be all that is left of a Relu or Clip: the range becomes a Clip. Weights become float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import add_constant, derive, fresh_name
from graphopt.targets.llvm.plan.integer.region import dequantized, quantized
from graphopt.targets.llvm.plan.layout import replace
from graphopt.targets.llvm.plan.weights import WEIGHTED, make_float

YIELDING = frozenset({*WEIGHTED, "Add", "BatchNormalization", "Sum"})
"""Operators that a Relu may have followed."""


def loosen(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place; activations must be uint8 (see `targets.integer.signs`)."""
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "DequantizeLinear":
            _drop(node, model.graph)
        elif node.domain == "" and node.op_type in WEIGHTED:
            make_float(model.graph, node)
    common.RemoveUnusedNodesPass()(model)


def _drop(node: ir.Node, graph: ir.Graph) -> None:
    """Let the readers of a DequantizeLinear have what was quantized."""
    q, value = dequantized(node.outputs[0]), node.outputs[0]
    quantizer = None if q is None else q.value.producer()
    if q is None or quantizer is None or quantizer.domain != "" or quantizer.op_type != "QuantizeLinear":
        return
    x, made = quantizer.inputs[0], quantized(quantizer)
    if x is None or made is None or (made.scale, made.zero) != (q.scale, q.zero):
        return
    producer = x.producer()
    if producer is not None and producer.domain == "" and producer.op_type in YIELDING and q.zero in (0, 255):
        ends = {"low": -q.zero, "high": 255 - q.zero}
        limits = [
            add_constant(graph, f"{x.name}_{hint}", np.asarray(np.float32(end) * q.scale)) for hint, end in ends.items()
        ]
        output = ir.val(fresh_name(graph, f"{value.name}_clipped"), value.dtype, value.shape)
        name = fresh_name(graph, f"{node.name}_clipped")
        clip = ir.node("Clip", [x, *limits], outputs=[output], name=name)
        derive(clip, [node])
        graph.insert_before(node, clip)
        x = output
    replace(value, x)
