"""Tensors of which only type, shape and statistics are known: those of a graph that is kept to be looked at.

In ONNX they are external data at a place that isn't there, `PLACE`; the statistics are in the tensor's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

PLACE = "not-kept"
_MOMENTS = "graphopt.moments"
_SAMPLE = 1 << 16  # elements

Array = np.ndarray[Any, Any]


def is_absent(tensor: ir.TensorProtocol | None) -> bool:
    """Whether the tensor's numbers were left out."""
    return isinstance(tensor, ir.ExternalTensor) and str(tensor.location) == PLACE


def tensors(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """The constants of a model: initializers, and the outputs of Constant nodes."""
    for graph in model.graphs():
        for value in list(graph.initializers.values()):
            if value.const_value is not None:
                yield value, value.const_value
        for node in graph:
            if node.op_type == "Constant" and "value" in node.attributes:
                yield node.outputs[0], node.attributes["value"].as_tensor()


def put(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Make `tensor` the constant that is `value`."""
    node = value.producer()
    if node is None:
        value.const_value = tensor
    else:
        node.attributes["value"] = ir.AttrTensor("value", tensor)


def absent(model: ir.Model) -> list[ir.Value]:
    """The constants whose numbers were left out."""
    return [value for value, tensor in tensors(model) if is_absent(tensor)]


def leave_out(tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
    """`tensor` without its numbers."""
    moments = json.dumps([float(f"{value:.4g}") for value in _moments(tensor.numpy())])
    return ir.ExternalTensor(
        PLACE,
        None,
        None,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        metadata_props={_MOMENTS: moments},
    )


def draw(model: ir.Model, seed: int = 0) -> int:
    """Give each absent constant random numbers in its range, normal with its mean and deviation; in place.

    Good for timing: what a kernel takes doesn't depend on them. Returns how many there were.
    """
    rng = np.random.default_rng(seed)
    found = [(value, tensor) for value, tensor in tensors(model) if is_absent(tensor)]
    for value, tensor in found:
        mean, deviation, low, high = json.loads(tensor.metadata_props.get(_MOMENTS, "[0, 0.05, -1, 1]"))
        numbers = rng.standard_normal(tensor.shape.numpy(), np.float32)
        numbers *= deviation
        numbers += mean
        np.clip(numbers, low, high, out=numbers)
        array = numbers if tensor.dtype.is_floating_point() else np.rint(numbers)
        put(value, ir.Tensor(array.astype(tensor.dtype.numpy()), dtype=tensor.dtype, name=tensor.name))
    return len(found)


def _moments(array: Array) -> tuple[float, float, float, float]:
    """Mean, standard deviation, least and greatest of the finite elements; of large tensors, of evenly spaced ones."""
    numbers = array.reshape(-1)[:: max(1, array.size // _SAMPLE)].astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return 0.0, 0.0, 0.0, 0.0
    return float(numbers.mean()), float(numbers.std()), float(numbers.min()), float(numbers.max())
