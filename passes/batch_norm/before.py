"""Fold towards the inputs: the nodes that produce x absorb the map of ``s·x + t``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.passes.batch_norm.affine import Affine, column, computed_operand, of_batch_norm, of_pointwise
from graphopt.passes.batch_norm.plan import Edge, Plan, Stuck, drop, feed, rename
from graphopt.passes.batch_norm.producers import ABSORBERS
from graphopt.passes.batch_norm.reading import Left, integer, is_onnx, known, label, rank
from graphopt.passes.batch_norm.through import cross
from graphopt.passes.batch_norm.weights import rounded

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]


def fold_before(batch_norm: ir.Node) -> Plan:
    """The edits that move the map of `batch_norm` into the producers of its input.

    One piece of a Concat may stay behind (`Plan.stuck`): it gets a BatchNormalization of its own, a smaller one.

    Raises:
        Left: no producer, or not every one that must, absorbs it.
    """
    plan = Plan()
    plan.add(drop, batch_norm, 0, True)
    todo = [Edge(batch_norm, 0, of_batch_norm(batch_norm), 1, kept=False)]
    while todo:
        edge = todo.pop()
        mark = plan.mark()
        try:
            todo += _step(plan, edge)
        except Left as left:
            if not is_onnx(edge.reader, "Concat") or edge.axis != 1 or plan.stuck:
                raise
            plan.back_to(mark)
            plan.stuck.append(Stuck(edge, str(left)))
    if not plan.into:
        raise Left(plan.stuck[0].reason)
    return plan


def _step(plan: Plan, edge: Edge) -> list[Edge]:
    """Absorb the map in the producer of the edge, or say at which of the producer's inputs it has to be absorbed."""
    node, axis, affine = _producer(edge.reader, edge.index), edge.axis, edge.affine
    if edge.kept:
        plan.add(rename, edge.reader, edge.index)
    absorb = ABSORBERS.get(node.op_type) if is_onnx(node, node.op_type) else None
    if absorb is not None:
        absorb(plan, node, affine, axis)
        plan.into.append(node)
        return []
    if is_onnx(node, "Concat"):
        return _concat(node, affine, axis)
    operand = computed_operand(node)
    if operand is not None:
        return [_pointwise(plan, node, operand[0], operand[1], affine, axis)]
    if is_onnx(node, "Add", "Sum"):
        return _sum(node, affine, axis)
    axis, affine = cross(node, axis, affine, forward=False)
    return [Edge(node, 0, affine, axis)]


def _producer(reader: ir.Node, index: int) -> ir.Node:
    value = reader.inputs[index]
    node = value.producer() if value is not None else None
    if value is None or node is None:
        raise Left(f"'{value.name if value is not None else ''}' is an input or a constant of the graph")
    if value.is_graph_output():
        raise Left(f"'{value.name}', which {label(node)} produces, is an output of the graph")
    users = [user for user, at in value.uses() if (user, at) != (reader, index)]
    if users:
        where = "" if users[0].graph is node.graph else " in a subgraph"
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        raise Left(f"'{value.name}', which {label(node)} produces, is also read by {label(users[0])}{where}{more}")
    if node.graph is not reader.graph:
        raise Left(f"{label(node)} lies in an outer graph")
    return node


def _concat(node: ir.Node, affine: Affine, axis: int) -> list[Edge]:
    """Along the channels every input takes its slice of the map, along another axis the whole of it."""
    joined = integer(node, "axis", 0)
    joined += rank(node.outputs[0]) if joined < 0 else 0
    if joined != axis:
        return [Edge(node, index, affine, axis) for index in range(len(node.inputs))]
    sizes = [value.shape[axis] if value is not None and value.shape is not None else None for value in node.inputs]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes) or sum(known) != affine.channels:
        raise Left(f"the sizes of the pieces of {label(node)} are not all known")
    ends: list[int] = np.cumsum(known).tolist()
    return [
        Edge(node, i, affine.slice(end - size, end), axis)
        for i, (size, end) in enumerate(zip(known, ends, strict=True))
    ]


def _pointwise(plan: Plan, node: ir.Node, index: int, other: Array, affine: Affine, axis: int) -> Edge:
    """A constant that is one map per channel joins the map; another addend takes t: ``s·(x+c) + t = s·x + (s·c+t)``."""
    first = of_pointwise(node, index, other, axis, affine.channels)
    if first is not None:
        plan.add(drop, node, index, True)
        return Edge(node, index, affine.after(first), axis, kept=False)
    dims = rank(node.inputs[index])
    if is_onnx(node, "Mul") or (is_onnx(node, "Div") and index == 0):
        if affine.shifts:
            raise Left(f"{label(node)} scales each position by its own factor, and the map shifts")
        return Edge(node, index, affine, axis)
    if is_onnx(node, "Div") or other.ndim > dims:
        raise Left(f"{label(node)} is not linear in '{_name(node, index)}', or raises its rank")
    scale, shift = column(affine.scale, axis, dims), column(affine.shift, axis, dims)
    moved = scale * other - shift if is_onnx(node, "Sub") and index == 0 else scale * other + shift
    stored = known(node.inputs[1 - index])
    assert stored is not None
    what = f"constant '{_name(node, 1 - index)}' of {label(node)}"
    plan.add(feed, node, 1 - index, rounded(moved, stored.dtype, what), f"{_name(node, 1 - index)}_folded")
    plan.into.append(node)
    return Edge(node, index, affine.without_shift(), axis)


def _sum(node: ir.Node, affine: Affine, axis: int) -> list[Edge]:
    """``s·(a + b) + t = (s·a + t) + s·b``."""
    if len({rank(value) for value in node.inputs}) > 1:
        raise Left(f"the operands of {label(node)} differ in rank")
    return [Edge(node, i, affine.without_shift() if i else affine, axis) for i in range(len(node.inputs))]


def _name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return str(value.name) if value is not None else ""
