"""A model's proto without its large weights: what onnx's checker and shape inference need, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import onnx

SMALL = 1024
"""Initializers up to this many bytes stay: shape inference reads them (Reshape targets, Slice bounds, axes)."""


def skeleton_proto(model: ir.Model) -> onnx.ModelProto:
    """`model` as a proto in which initializers above `SMALL` bytes became graph inputs of the same type.

    The model itself is not touched; large tensors are neither copied nor read.
    """
    graph = model.graph
    large = {v.name: v.const_value for v in graph.initializers.values() if _is_large(v.const_value)}
    inputs = [v for v in graph.inputs if v.name not in large]
    inputs += [ir.val(name, dtype=t.dtype, shape=t.shape.numpy()) for name, t in large.items() if t is not None]
    view = ir.GraphView(
        inputs,
        graph.outputs,
        nodes=graph,
        initializers=[v for v in graph.initializers.values() if v.name not in large and v.const_value is not None],
        opset_imports=graph.opset_imports,
        name=graph.name,
    )
    return ir.to_proto(ir.Model(view, ir_version=model.ir_version, functions=list(model.functions.values())))  # pyright: ignore[reportArgumentType]  # a view is documented to do


def _is_large(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.nbytes > SMALL
