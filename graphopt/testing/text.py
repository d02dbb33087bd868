"""Small graphs from ONNX's text form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import normalise

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


def from_text(text: str, **weights: Array) -> ir.Model:
    """A model in normal form from ONNX text; graph inputs named in `weights` become initializers with these arrays."""
    model = ir.from_onnx_text(text)
    inputs = {str(v.name): v for v in model.graph.inputs}
    for name, array in weights.items():
        value = inputs.pop(name)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    model.graph.inputs[:] = inputs.values()
    return normalise(model)


def op_types(model: ir.Model) -> list[str]:
    """Operator types of the main graph in order."""
    return [node.op_type for node in model.graph]
