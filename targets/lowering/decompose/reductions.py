"""Reductions over nothing: the shape is known, and so is every element."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.targets.lowering.decompose.write import sizes
from graphopt.targets.lowering.nodes import constant, put

OF_NOTHING = {
    "Sum": 0.0, "SumSquare": 0.0, "L1": 0.0, "L2": 0.0, "LogSum": -math.inf, "LogSumExp": -math.inf, "Prod": 1.0,
    "Max": -math.inf, "Min": math.inf,
}  # fmt: skip


def _empty(node: ir.Node) -> list[ir.Value | None] | None:
    """The neutral element of the reduction, where the input has a dimension of size 0."""
    shape, into = sizes(node.inputs[0]), sizes(node.outputs[0])
    dtype = node.outputs[0].dtype
    if shape is None or into is None or 0 not in shape or dtype is None:
        return None
    number = OF_NOTHING[node.op_type.removeprefix("Reduce")]
    kind = dtype.numpy()
    if math.isinf(number) and kind.kind in "iu":
        number = np.iinfo(kind).min if number < 0 else np.iinfo(kind).max
    elif math.isinf(number) and kind.kind == "b":
        number = number > 0
    full = constant(node, "of_nothing", np.full(into, number, kind))
    return [put(node, "Identity", [full], dtype=dtype, like=node.outputs[0])]


REWRITES = {f"Reduce{name}": _empty for name in OF_NOTHING}
