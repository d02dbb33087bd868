"""Reading nodes: attributes, constants, ranks; what can't be read is a reason to leave the node alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import constant_array

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
VIEWS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


class Left(Exception):  # noqa: N818 - it is an answer, not an error
    """A BatchNormalization stays where it is; the message says why."""


def label(node: ir.Node) -> str:
    """How reports call a node."""
    return f"{node.op_type} '{node.name}'"


def is_onnx(node: ir.Node, *op_types: str) -> bool:
    """Whether `node` is one of these operators of the standard domain."""
    return node.domain in ("", "ai.onnx") and node.op_type in op_types


def attribute(node: ir.Node, name: str) -> ir.Attr | None:
    """An attribute, None where the node has none of that name.

    Raises:
        Left: it refers to a parameter of the enclosing function.
    """
    found = node.attributes.get(name)
    if found is not None and found.is_ref():
        raise Left(f"attribute {name} of {label(node)} is a parameter of the enclosing function")
    return found


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute; see `attribute`."""
    found = attribute(node, name)
    return default if found is None else found.as_int()


def integers(node: ir.Node, name: str) -> list[int]:
    """A list attribute, empty where there is none; see `attribute`."""
    found = attribute(node, name)
    return [] if found is None else list(found.as_ints())


def number(node: ir.Node, name: str, default: float) -> float:
    """A float attribute; see `attribute`."""
    found = attribute(node, name)
    return default if found is None else found.as_float()


def text(node: ir.Node, name: str, default: str) -> str:
    """A string attribute; see `attribute`."""
    found = attribute(node, name)
    return default if found is None else found.as_string()


def known(value: ir.Value | None) -> Array | None:
    """The array behind `value` when it is constant, or a constant through at most three views of it; else None."""
    array = constant_array(value)
    if array is not None or value is None or value.shape is None:
        return array
    dims = [d for d in value.shape if isinstance(d, int)]
    source: ir.Value | None = value
    for _ in range(3):
        node = source.producer() if source is not None else None
        if node is None or len(dims) < len(value.shape) or not is_onnx(node, "Identity", *VIEWS):
            return None
        source = node.inputs[0]
        array = constant_array(source)
        if array is not None:
            return array.reshape(dims)
    return None


def constant(node: ir.Node, index: int, what: str) -> Array:
    """The constant input `index` of `node`. Raises `Left` saying what computes it otherwise."""
    value = node.inputs[index]
    array = known(value)
    if array is not None:
        return array
    producer = value.producer() if value is not None else None
    name = value.name if value is not None else None
    if producer is None:
        raise Left(f"{what} '{name}' of {label(node)} is an input of the graph, not a constant")
    way = "" if is_onnx(producer, *QUANTIZERS) else " (fold-constants may help)"  # it leaves those
    raise Left(f"{what} '{name}' of {label(node)} is computed by {label(producer)}{way}")


def rank(value: ir.Value | None) -> int:
    """Number of dimensions. Raises `Left` when shape inference could not tell."""
    if value is None or value.shape is None:
        raise Left(f"the rank of '{value.name if value is not None else None}' is unknown")
    return len(value.shape)


def same_channels(node: ir.Node, channels: int, expected: int) -> None:
    """Raise `Left` unless `node` has as many channels as the map."""
    if channels != expected:
        raise Left(f"{label(node)} has {channels} channels where the map has {expected}")
