"""Inputs that are known before the model runs become constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError, ModelError
from graphopt.graph.shapes import forget_shapes, infer_shapes


def bind_values(model: ir.Model, values: Mapping[str, Any]) -> None:
    """Make inputs constants, in place: ``{"axes": [1]}``; shapes are inferred anew.

    What a model takes as a tensor (axes, sizes, repeats) may so be known when it is compiled. Values are converted to
    the input's type where that loses nothing.

    Raises:
        ModelError: no such input, or shapes that contradict the values.
        DataError: a value of another type or shape.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    for name, given in values.items():
        if name not in inputs:
            have = ", ".join(map(repr, inputs)) or "none"
            raise ModelError(f"no input is named {name!r}; the inputs are: {have}.")
        value = inputs[name]
        array = _fitting(value, np.asarray(given))
        model.graph.inputs.remove(value)
        value.shape = ir.Shape(array.shape)
        value.const_value = ir.Tensor(array, name=name)
        model.graph.register_initializer(value)
    if values:
        forget_shapes(model)
        infer_shapes(model)


def _fitting(value: ir.Value, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`array` in the type of the input `value`."""
    expected = f"{value.dtype}{'' if value.shape is None else list(value.shape)}"
    if value.dtype is None or array.dtype.kind not in "biuf" or (value.dtype.is_integer() and array.dtype.kind == "f"):
        raise DataError(f"input {value.name!r} expects {expected} and was given {array.dtype}{list(array.shape)}.")
    converted = array.astype(value.dtype.numpy())
    same_rank = value.shape is None or len(value.shape) == array.ndim
    if not same_rank or any(
        isinstance(dim, int) and dim != size for dim, size in zip(value.shape or (), array.shape, strict=False)
    ):
        raise DataError(f"input {value.name!r} expects {expected} and was given {array.dtype}{list(array.shape)}.")
    return converted
