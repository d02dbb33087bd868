"""Fold towards the outputs: every node that reads ``s·x + t`` takes x and absorbs the map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.passes.batch_norm.affine import Affine, computed_operand, of_batch_norm, of_pointwise
from graphopt.passes.batch_norm.consumers import ABSORBERS
from graphopt.passes.batch_norm.plan import Plan, drop, rename_output
from graphopt.passes.batch_norm.reading import Left, is_onnx, label
from graphopt.passes.batch_norm.through import cross

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]


def fold_after(batch_norm: ir.Node) -> Plan:
    """The edits that move the map of `batch_norm` into all nodes that read its output.

    Raises:
        Left: the output is an output of the graph, or some reader does not absorb the map.
    """
    plan = Plan()
    plan.add(drop, batch_norm, 0, False)
    todo = [(batch_norm, of_batch_norm(batch_norm), 1)]
    while todo:
        todo += _step(plan, *todo.pop())
    if not plan.into:
        raise Left("nobody reads its output")
    return plan


def _step(plan: Plan, node: ir.Node, affine: Affine, axis: int) -> list[tuple[ir.Node, Affine, int]]:
    """Absorb the map in the readers of `node`, or say behind which of them it has to be absorbed."""
    value = node.outputs[0]
    if value.is_graph_output():
        raise Left(f"'{value.name}' is an output of the graph")
    further: list[tuple[ir.Node, Affine, int]] = []
    for user, index in value.uses():
        if user.graph is not node.graph:
            raise Left(f"'{value.name}' is read in a subgraph")
        absorb = ABSORBERS.get(user.op_type) if is_onnx(user, user.op_type) else None
        operand = computed_operand(user)
        if absorb is not None:
            absorb(plan, user, index, affine, axis)
            plan.into.append(user)
        elif operand is not None:
            further.append((user, _joined(plan, user, operand[1], index, affine, axis), axis))
        else:
            further.append((user, *_crossed(plan, user, index, affine, axis)))
    return further


def _crossed(plan: Plan, node: ir.Node, index: int, affine: Affine, axis: int) -> tuple[Affine, int]:
    if index != 0:
        raise Left(f"{label(node)} reads it as operand {index}")
    axis, affine = cross(node, axis, affine, forward=True)
    plan.add(rename_output, node)
    return affine, axis


def _joined(plan: Plan, node: ir.Node, other: Array, index: int, affine: Affine, axis: int) -> Affine:
    then = of_pointwise(node, index, other, axis, affine.channels)
    if then is None:
        raise Left(f"{label(node)} is no map per channel")
    plan.add(drop, node, index, False)
    return then.after(affine)
