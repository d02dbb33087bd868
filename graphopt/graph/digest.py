"""A digest of what a model computes: equal for equal graphs and weights, whatever their provenance."""

from __future__ import annotations

import hashlib

import onnx_ir as ir


def digest(model: ir.Model) -> str:
    """SHA-256, in hexadecimal, over opsets, inputs, outputs, nodes, attributes and weights in their order."""
    seal = hashlib.sha256(repr(sorted(model.graph.opset_imports.items())).encode())
    for graph in model.graphs():
        seal.update(repr([(v.name, str(v.dtype), str(v.shape)) for v in (*graph.inputs, *graph.outputs)]).encode())
        for name, value in graph.initializers.items():
            tensor = value.const_value
            seal.update(repr((name, str(value.dtype), str(value.shape))).encode())
            seal.update(b"" if tensor is None else tensor.tobytes())
        for node in graph:
            names = [[None if v is None else v.name for v in values] for values in (node.inputs, node.outputs)]
            seal.update(repr((node.domain, node.op_type, names)).encode())
            for _, attribute in sorted(node.attributes.items()):
                if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):  # `graphs` has them
                    seal.update(ir.to_proto(attribute).SerializeToString(deterministic=True))
    return seal.hexdigest()
