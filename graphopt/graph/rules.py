"""What onnx's checker lets through and no reader agrees on: refused before a file becomes a graph."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from graphopt.errors import ModelError

if TYPE_CHECKING:
    import onnx

INLINED = 1_000_000
"""Nodes that a model may have when each call of a function is replaced by the function's nodes."""


def check_rules(proto: onnx.ModelProto) -> None:
    """Raise `ModelError` naming the culprit unless `proto` keeps these rules.

    Opsets, inputs, outputs, initializers and functions occur once; tensors say their type and have as many bytes as
    that type and their shape need; external data is at numbers; no sparse initializers; attributes refer to others
    inside functions alone; functions do not multiply to more than `INLINED` nodes.
    """
    _once("imports an opset", (o.domain or "ai.onnx" for o in proto.opset_import))
    _once("defines a function", (f"{f.domain}::{f.name}:{f.overload}" for f in proto.functions))
    for graph in graphs(proto.graph):
        _once("has an input", (value.name for value in graph.input))
        _once("has an output", (value.name for value in graph.output))
        _once("has an initializer", (tensor.name for tensor in graph.initializer))
        if graph.sparse_initializer:
            raise ModelError(
                "the model has sparse initializers, which graphopt does not read: store them as dense ones."
            )
        for tensor in _tensors(graph):
            _check_tensor(tensor)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.ref_attr_name:
                    raise ModelError(
                        f"the attribute {attribute.name!r} of node {node.name!r} ({node.op_type}) refers to an "
                        "attribute of a function, and the node is in none."
                    )
    _check_functions(proto)


def _once(what: str, names: Iterable[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise ModelError(f"the model {what} more than once: {name!r}.")


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph` and those inside its nodes; iterative, as nesting may be deep."""
    waiting = [graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_tensor(tensor: onnx.TensorProto) -> None:
    import onnx_ir as ir

    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError as error:
        raise ModelError(
            f"the tensor {tensor.name!r} is of type {tensor.data_type}, which ONNX does not have."
        ) from error
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(f"the tensor {tensor.name!r} does not say of what type it is.")
    for entry in tensor.external_data:
        if entry.key in ("offset", "length") and not entry.value.isdecimal():
            raise ModelError(f"the tensor {tensor.name!r} lies at {entry.key} {entry.value!r} of a file: not a number.")
    size = len(tensor.raw_data)  # a copy of them: once
    if size and dtype != ir.DataType.STRING:
        need = -(-math.prod(tensor.dims) * dtype.bitwidth // 8)
        if size != need:
            raise ModelError(
                f"the tensor {tensor.name!r} has {size} bytes, and {dtype.name}{list(tensor.dims)} needs {need}."
            )


def _check_functions(proto: onnx.ModelProto) -> None:
    """Count the nodes of the inlined model, function by function, each once (onnx's checker counts them one by one)."""
    bodies = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[onnx.NodeProto]) -> int | None:
        """None: a function that is not counted yet is called."""
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in bodies and key not in sizes:
                return None
            total += sizes.get(key, 1)
        return total

    waiting = dict(bodies)
    while waiting:
        counted = {key: found for key, f in waiting.items() if (found := size(f.node)) is not None}
        if not counted:  # they call each other in a circle: onnx's checker says which
            return
        sizes |= counted
        waiting = {key: f for key, f in waiting.items() if key not in counted}
    worst = max(sizes.values(), default=0)
    if worst > INLINED:
        raise ModelError(
            f"the model's functions call each other so that one of them stands for {worst} nodes; at most {INLINED} "
            "are read."
        )
