"""Reading a node's operands, and how reports call it."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.passes.channels.axes import Opaque


def said(node: ir.Node) -> str:
    """How reports call a node."""
    return f"{node.op_type} `{node.name}`"


def mixed(node: ir.Node) -> str:
    """Why an axis stays."""
    return f"{said(node)} mixes them"


def read(node: ir.Node, index: int) -> ir.Value | None:
    """An operand, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def integers(node: ir.Node, index: int, attribute: str = "") -> list[int] | None:
    """An operand of integers, or the attribute that stood for it before; None where there is none.

    Raises:
        Opaque: it is computed at run time.
    """
    if attribute in node.attributes:
        return list(node.attributes.get_ints(attribute, []))
    value = read(node, index)
    if value is None:
        return None
    array = constant_array(value)
    if array is None:
        raise Opaque(f"`{value.name}` is computed at run time")
    return [int(n) for n in array.reshape(-1)]
