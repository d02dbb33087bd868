"""Which nodes a pass may give operands of 16 bits, and the casts it puts in: what `convert-float16` and
`convert-bfloat16` share."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graphopt.graph import constant_array, derive, fresh_name

SINGLE = ir.DataType.FLOAT
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Converted wherever they stand: hardware sums products of 16-bit floats in float32."""


def float32_operands(node: ir.Node, operators: frozenset[str]) -> list[ir.Value]:
    """What `node`, one of `operators` of ONNX's own domain, reads in float32, with something among it that is no
    constant, to give float32; empty for other nodes."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in operators:
        return []
    read = [value for value in node.inputs if value is not None and value.dtype == SINGLE]
    moves = any(constant_array(value) is None for value in read)
    return read if moves and all(value.dtype == SINGLE for value in node.outputs) else []


def quantized(read: Iterable[ir.Value]) -> str | None:
    """Why a node that reads `read` stays as it is: it belongs to the integer arithmetic of a quantized model."""
    for value in read:
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            return f"{value.name!r} is quantized"
    return None


def cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, reader: ir.Node | None = None) -> ir.Value:
    """`value` as `dtype`, by a Cast right behind the node that gives it, or before all nodes.

    Of what no node gives, the Cast stems from `reader`, or the first there is.
    """
    node = ir.node("Cast", [value], {"to": int(dtype)})
    result, producer = node.outputs[0], value.producer()
    kind = "float32" if dtype == SINGLE else dtype.name.lower()
    node.name = result.name = fresh_name(graph, f"{value.name}_{kind}")
    result.dtype, result.shape = dtype, value.shape
    readers = [reader] if reader is not None else [user for user, _ in value.uses() if user is not node]
    derive(node, [producer] if producer is not None else readers[:1])
    if producer is None:
        graph.insert_before(graph.node(0), node)
    else:
        graph.insert_after(producer, node)
    return result
