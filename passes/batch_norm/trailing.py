"""Constant affines right behind a BatchNormalization (Caffe's Scale layer) become part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import used_once
from graphopt.passes.batch_norm.affine import Affine, computed_operand, of_batch_norm, of_pointwise
from graphopt.passes.batch_norm.plan import Plan, drop
from graphopt.passes.batch_norm.producers import into_batch_norm
from graphopt.passes.batch_norm.reading import Left, label

if TYPE_CHECKING:
    import onnx_ir as ir


def join_trailing(batch_norm: ir.Node) -> tuple[Plan, str]:
    """The edits by which `batch_norm` takes over the constant Add, Sub, Mul, Div behind it, and their names.

    Raises:
        Left: there is none, or the parameters of `batch_norm` are not known.
    """
    channels = of_batch_norm(batch_norm).channels
    total, value = Affine(np.ones(channels), np.zeros(channels)), batch_norm.outputs[0]
    joined: list[tuple[ir.Node, int]] = []
    while used_once(value):
        node, index = next(iter(value.uses()))
        operand = computed_operand(node)
        then = None if operand is None else of_pointwise(node, index, operand[1], 1, channels)
        if then is None or node.graph is not batch_norm.graph:
            break
        joined.append((node, index))
        total, value = then.after(total), node.outputs[0]
    if not joined:
        raise Left("no constant affine behind it")
    plan = Plan()
    into_batch_norm(plan, batch_norm, total, 1)
    for node, index in reversed(joined):
        plan.add(drop, node, index, True)
    return plan, ", ".join(label(node) for node, _ in joined)
