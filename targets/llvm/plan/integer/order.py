"""DequantizeLinear right behind what it reads: then a residual is there before the layer that adds it."""

from __future__ import annotations

import onnx_ir as ir


def hoist(graph: ir.Graph) -> None:
    """Move every DequantizeLinear of a computed value, in place."""
    for node in list(graph):
        if node.domain != "" or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
            continue
        producer = node.inputs[0].producer()
        others = [v.producer() for v in node.inputs[1:] if v is not None]
        if producer is None or any(p is not None for p in others):
            continue
        graph.remove(node)
        graph.insert_after(producer, node)
