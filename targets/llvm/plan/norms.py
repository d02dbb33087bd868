"""Layer normalization as exporters write it out, found and written as the one operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import add_constant, constant_array, fresh_name, used_once
from graphopt.targets.llvm.plan.formulas import scalar
from graphopt.targets.llvm.plan.layout import replace
from graphopt.targets.llvm.plan.rows import matrix


def find_norms(model: ir.Model) -> None:
    """``(x - mean x) / sqrt(mean (x - mean x)^2 + epsilon) [* scale] [+ bias]`` over the last axis, in place."""
    for node in list(model.graph):
        x = _normalised(node)
        if x is not None and node.graph is not None:
            _rewrite(node, *x, model.graph)
    common.RemoveUnusedNodesPass()(model)


def _normalised(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(x, epsilon) where `node` is the division."""
    if not _is(node, "Div"):
        return None
    centred, root = node.inputs
    x = _centred(centred)
    inner = _input(root, "Sqrt")
    add = None if inner is None else inner.producer()
    if x is None or add is None or not _is(add, "Add"):
        return None
    epsilon = scalar(add.inputs[1])
    square = _mean(add.inputs[0])
    producer = None if square is None else square.producer()
    if epsilon is None or producer is None:
        return None
    squared = _is(producer, "Pow") and scalar(producer.inputs[1]) == 2.0
    squared = squared or (_is(producer, "Mul") and producer.inputs[0] is producer.inputs[1])
    return (x, epsilon) if squared and _centred(producer.inputs[0]) is x and matrix(x) is not None else None


def _rewrite(node: ir.Node, x: ir.Value, epsilon: float, graph: ir.Graph) -> None:
    """Put the operator in place of the division and the product and sum that follow."""
    found = matrix(x)
    assert found is not None
    size, last = found[1], node
    factors = {"Mul": np.ones(size, np.float32), "Add": np.zeros(size, np.float32)}
    for op in factors:
        value = last.outputs[0]
        user = next(iter(value.uses())).node if used_once(value) else None
        array = None if user is None or not _is(user, op) else _along(user, value, size)
        if user is not None and array is not None:
            factors[op], last = array, user
    y = last.outputs[0]
    inputs = [x, *(add_constant(graph, f"{node.name}_{op.lower()}", array) for op, array in factors.items())]
    output = ir.val(fresh_name(graph, f"{y.name}_norm"), y.dtype, y.shape)
    attributes = {"axis": -1, "epsilon": epsilon}
    name = fresh_name(graph, f"{node.name}_norm")
    graph.insert_before(last, ir.node("LayerNormalization", inputs, attributes, outputs=[output], name=name))
    replace(y, output)


def _along(node: ir.Node, value: ir.Value, size: int) -> np.ndarray | None:
    """The other operand, a constant along the last axis."""
    array = constant_array(node.inputs[1] if node.inputs[0] is value else node.inputs[0])
    if array is None or array.size != size or array.shape[-1:] != (size,) or node.outputs[0].shape != value.shape:
        return None
    return np.ascontiguousarray(array.reshape(size), np.float32)


def _centred(value: ir.Value | None) -> ir.Value | None:
    """x where `value` is x less its mean."""
    node = None if value is None else value.producer()
    if node is None or not _is(node, "Sub") or node.inputs[0] is None:
        return None
    return node.inputs[0] if _mean(node.inputs[1]) is node.inputs[0] else None


def _mean(value: ir.Value | None) -> ir.Value | None:
    """x where `value` is its mean over the last axis, kept as an axis of size 1."""
    node = None if value is None else value.producer()
    x = None if node is None or not node.inputs else node.inputs[0]
    if node is None or x is None or not _is(node, "ReduceMean") or x.shape is None:
        return None
    given = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = list(node.attributes.get_ints("axes", [])) if given is None else given.reshape(-1).tolist()
    return x if axes in ([-1], [len(x.shape) - 1]) and node.attributes.get_int("keepdims", 1) else None


def _input(value: ir.Value | None, op: str) -> ir.Value | None:
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and _is(node, op) else None


def _is(node: ir.Node, op: str) -> bool:
    return node.op_type == op and node.domain == ""
