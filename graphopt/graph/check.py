"""Is this graph valid ONNX? Run at the door and after every pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.graph import onnx_library
from graphopt.graph.edit import constant_array, subgraphs
from graphopt.graph.skeleton import skeleton_proto

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

MAX_DEPTH = 32
"""Nesting of subgraphs beyond this is refused: recursion over it would exhaust the stack."""


def check(
    model: ir.Model, skeleton: onnx.ModelProto | None = None, call: Callable[[bytes, bytes], bytes] | None = None
) -> None:
    """Raise `ModelError` naming the culprit unless `model` is valid ONNX.

    onnx's full checker (operators, attributes, order, single assignment), and what it does not look at:
    unique and known opset imports, ownership (every used value is produced in scope), names present.
    `skeleton`: that of the model as it is now, where the caller needs it too (see `graphopt.graph.skeleton`); `call`:
    how onnx is called, in this process unless told otherwise (see `graphopt.graph.isolated`).
    """
    if not model.graph.outputs:
        raise ModelError("the graph has no outputs, so it computes nothing.")
    check_depth(model.graph)
    _check_ownership(model)
    proto = skeleton_proto(model) if skeleton is None else skeleton
    tensors = [o.type.tensor_type for o in proto.graph.output if o.type.HasField("tensor_type")]
    unranked = [tensor for tensor in tensors if not tensor.HasField("shape")]
    for tensor in unranked:  # the checker wants a shape there; an unknown rank is no fault
        tensor.shape.SetInParent()
    try:
        (call or onnx_library.call)(onnx_library.CHECK, proto.SerializeToString())
    except ValueError as error:
        raise ModelError(f"not a valid ONNX graph: {' '.join(str(error).split())[:600]}") from error
    for tensor in unranked:
        tensor.ClearField("shape")


def check_traps(model: ir.Model) -> None:
    """Raise `ModelError` where a node that always runs would stop the processor, whatever the inputs."""
    for node in model.graph:
        if node.op_type in ("Div", "Mod") and node.domain in ("", "ai.onnx") and traps(node):
            raise ModelError(
                f"node {node.name!r} ({node.op_type}) divides an integer by zero, or the smallest one by minus one: "
                "no program survives it."
            )


def traps(node: ir.Node) -> bool:
    """Does this Div or Mod of integers, by what is known of its operands, stop the processor?"""
    dividend, divisor = (constant_array(value) for value in node.inputs[:2])
    if divisor is None or divisor.dtype.kind not in "iu":
        return False
    if (divisor == 0).any():
        return True
    smallest = np.iinfo(divisor.dtype).min
    return smallest < 0 and dividend is not None and bool((dividend == smallest).any() and (divisor == -1).any())


def check_depth(graph: ir.Graph, depth: int = 0) -> None:
    """Raise `ModelError` when subgraphs are nested more than `MAX_DEPTH` deep."""
    if depth > MAX_DEPTH:
        raise ModelError(f"subgraphs are nested more than {MAX_DEPTH} deep, below graph {graph.name!r}.")
    for node in graph:
        for sub in subgraphs(node):
            check_depth(sub, depth + 1)


def _check_ownership(model: ir.Model) -> None:
    graphs = set(map(id, model.graphs()))
    for graph in model.graphs():
        for node in graph:
            if not node.name:
                raise ModelError(
                    f"a {node.op_type} node has no name; its outputs are {[v.name for v in node.outputs]}."
                )
            for value in node.inputs:
                if value is not None and (value.graph is None or id(value.graph) not in graphs):
                    raise ModelError(
                        f"node {node.name!r} ({node.op_type}) reads {value.name!r}, which nothing in the graph yields."
                    )
    for value in model.graph.outputs:
        if value.graph is not model.graph:
            raise ModelError(f"the output {value.name!r} is yielded by nothing in the graph.")
