"""A model's proto without its large weights: what onnx's checker and shape inference need, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.errors import ModelError

if TYPE_CHECKING:
    import onnx

SMALL = 1024
"""Initializers up to this many bytes stay: shape inference reads them (Reshape targets, Slice bounds, axes)."""


def skeleton_proto(model: ir.Model) -> onnx.ModelProto:
    """`model` as a proto in which initializers above `SMALL` bytes became graph inputs of the same type.

    The model itself is not touched; large tensors are neither copied nor read.

    Raises:
        ModelError: what the model holds can't be written as ONNX: names that are no text, attributes of no type.
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
    whole = ir.Model(view, ir_version=model.ir_version, functions=list(model.functions.values()))  # pyright: ignore[reportArgumentType]  # a view is documented to do
    try:
        return ir.to_proto(whole)
    except (ValueError, TypeError, ir.serde.SerdeError) as error:
        raise ModelError(f"not a valid ONNX graph: {first_cause(error)}") from error


def first_cause(error: BaseException) -> str:
    """The words of the exception at the bottom of a chain: onnx-ir raises one for each level of a model."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:400]


def _is_large(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.nbytes > SMALL
