"""Attributes as an operator's schema has them when nobody sets them."""

from __future__ import annotations

import functools
from typing import Any

import onnx_ir as ir


def own_attributes(node: ir.Node) -> dict[str, ir.Attr]:
    """The attributes of `node` that say something: not those that are set to what they are by default."""
    usual = _defaults(node.domain, node.op_type)
    return {name: a for name, a in node.attributes.items() if name not in usual or _plain(a.value) != usual[name]}


ALIKE = ("ai.onnx", "com.microsoft.nchwc")
"""Domains whose operators are ONNX's own; the second is onnxruntime's for blocked channels."""


@functools.cache
def _defaults(domain: str, op_type: str) -> dict[str, Any]:
    """Attribute -> default, by the newest version of the operator; none for an operator that onnx does not know."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, "" if domain in ALIKE else domain)
    except onnx.defs.SchemaError:
        return {}
    protos = {name: attribute.default_value for name, attribute in schema.attributes.items()}
    return {name: _plain(onnx.helper.get_attribute_value(proto)) for name, proto in protos.items() if proto.name}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return tuple(value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
