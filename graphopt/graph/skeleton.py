"""A model's proto without its large weights: what onnx's checker and shape inference need, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import onnx

SMALL = 1024
"""Initializers up to this many bytes stay: shape inference reads them (Reshape targets, Slice bounds, axes)."""


def skeleton_proto(model: ir.Model) -> onnx.ModelProto:
    """Return `model` as a proto in which initializers above `SMALL` bytes became graph inputs of the same type.

    The model itself is not touched; large tensors are neither copied nor read.
    """
    clone = model.clone()
    for name, value in list(clone.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes <= SMALL:
            continue
        value.shape = ir.Shape(tensor.shape.numpy())
        value.dtype = tensor.dtype
        value.const_value = None
        del clone.graph.initializers[name]
        if not value.is_graph_input():
            clone.graph.inputs.append(value)
    return ir.to_proto(clone)
