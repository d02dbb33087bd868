"""A graph as stable text, a node a line."""

from __future__ import annotations

import onnx_ir as ir


def listing(model: ir.Model) -> str:
    """The main graph with the type of every value; weights by shape only, subgraphs by the word "graph"."""
    lines = [f"{v.name}: {_type(v)}" for v in model.graph.inputs]
    lines.extend(map(node_line, model.graph))
    lines.append("return " + ", ".join(str(v.name) for v in model.graph.outputs))
    return "\n".join(lines) + "\n"


def node_line(node: ir.Node) -> str:
    """One node as `listing` shows it."""
    attributes = ", ".join(f"{name}={_attribute(a)}" for name, a in sorted(node.attributes.items()))
    outputs = ", ".join(f"{v.name}: {_type(v)}" for v in node.outputs)
    inputs = ", ".join("-" if v is None else _operand(v) for v in node.inputs)
    return f"{outputs} = {node.op_type}({inputs})" + (f" <{attributes}>" if attributes else "")


def _operand(value: ir.Value) -> str:
    return f"{value.name}{{{_type(value)}}}" if value.is_initializer() else str(value.name)


def _type(value: ir.Value) -> str:
    dims = "?" if value.shape is None else ",".join(str(d) for d in value.shape)
    return f"{value.dtype.name.lower() if value.dtype else '?'}[{dims}]"


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "graph"
    if attribute.type == ir.AttributeType.TENSOR:
        return f"tensor{list(attribute.as_tensor().shape)}"
    return str(attribute.value)
