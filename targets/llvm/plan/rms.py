"""Normalization by the root mean square, which exporters (and ONNX's own definition of it) write out in operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import add_constant, constant_array, derive, fresh_name, used_once
from graphopt.targets.llvm.kernels import rms_norm
from graphopt.targets.llvm.plan.formulas import scalar
from graphopt.targets.llvm.plan.kernels import ELEMENT, Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, replace
from graphopt.targets.llvm.plan.rows import matrix

OPERATOR = ("graphopt", "RmsNorm")


def find_rms_norms(model: ir.Model) -> None:
    """``x / sqrt(mean x^2 + epsilon) [* scale]`` over the last axis, as `OPERATOR`, in place."""
    for node in list(model.graph):
        found = _normalised(node)
        if found is not None and node.graph is not None:
            _rewrite(node, *found, model.graph)
    common.RemoveUnusedNodesPass()(model)


def _normalised(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(x, epsilon) where `node` is the division, or the product with the reciprocal."""
    if node.domain != "" or node.op_type not in ("Div", "Mul") or len(node.inputs) != 2:
        return None
    for x, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        root = other if node.op_type == "Div" else _input(other, "Reciprocal")
        add = _input(root, "Sqrt")
        producer = None if add is None else add.producer()
        if x is None or producer is None or producer.op_type != "Add" or producer.domain != "":
            continue
        for mean, constant in ((producer.inputs[0], producer.inputs[1]), (producer.inputs[1], producer.inputs[0])):
            epsilon = scalar(constant)
            if epsilon is not None and _mean_square_of(mean, x) and matrix(x) is not None:
                return x, epsilon
        if node.op_type == "Div":
            return None
    return None


def _mean_square_of(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether `value` is the mean of the squares of `x` along the last axis, kept as an axis of size 1."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "ReduceMean" or node.domain != "" or x.shape is None:
        return False
    given = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = list(node.attributes.get_ints("axes", [])) if given is None else given.reshape(-1).tolist()
    square = node.inputs[0].producer() if node.inputs[0] is not None else None
    if axes not in ([-1], [len(x.shape) - 1]) or not node.attributes.get_int("keepdims", 1) or square is None:
        return False
    if square.domain != "" or square.inputs[0] is not x:
        return False
    twice = square.op_type == "Mul" and square.inputs[1] is x
    return twice or (square.op_type == "Pow" and scalar(square.inputs[1]) == 2.0)


def _input(value: ir.Value | None, op: str) -> ir.Value | None:
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type == op and node.domain == "" else None


def _rewrite(node: ir.Node, x: ir.Value, epsilon: float, graph: ir.Graph) -> None:
    found = matrix(x)
    assert found is not None
    size, last, scale = found[1], node, np.ones(found[1], np.float32)
    value = node.outputs[0]
    user = next(iter(value.uses())).node if used_once(value) else None
    if user is not None and user.op_type == "Mul" and user.domain == "" and user.outputs[0].shape == value.shape:
        array = constant_array(user.inputs[1] if user.inputs[0] is value else user.inputs[0])
        if array is not None and array.size == size and array.shape[-1:] == (size,):
            scale, last = np.ascontiguousarray(array.reshape(size), np.float32), user
    y = last.outputs[0]
    output = ir.val(fresh_name(graph, f"{y.name}_rms"), y.dtype, y.shape)
    inputs = [x, add_constant(graph, f"{node.name}_scale", scale)]
    name = fresh_name(graph, f"{node.name}_rms")
    made = ir.node(OPERATOR[1], inputs, {"epsilon": epsilon}, domain=OPERATOR[0], outputs=[output], name=name)
    derive(made, (node, last))
    graph.insert_before(last, made)
    replace(y, output)


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute an `OPERATOR` by the kernel."""
    x, scale = node.inputs
    found = matrix(x)
    assert found is not None
    assert x is not None
    assert scale is not None
    rows, size = found
    epsilon, parallel = node.attributes.get_float("epsilon", 0.0), kernels.threads(rows, size * ELEMENT)
    symbol = kernels.symbol(
        ("rms_norm", rows, size, epsilon), "rms_norm",
        lambda s: rms_norm.make(rows, size, epsilon, kernels.isa, parallel, s),
    )  # fmt: skip
    x = twins.first(x)
    assert x.shape is not None
    called = call(symbol, [x, scale], list(x.shape), node)
    twins.insert(called)
    replace(node.outputs[0], called.outputs[0])
    return True
