"""Layer normalization over the last axis onto its kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.targets.llvm.kernels import layer_norm
from graphopt.targets.llvm.plan.kernels import ELEMENT, Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, replace

Rows = tuple[int | str, ...]


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute `node` by a kernel if there is one; says whether."""
    problem = matrix(node.inputs[0]) if node.domain == "" and node.inputs else None
    if problem is None:
        return False
    rows, size = problem
    if node.op_type == "LayerNormalization":
        return _layer_norm(node, rows, size, kernels, twins)
    return False


def matrix(value: ir.Value | None) -> tuple[Rows, int] | None:
    """A float32 value as rows (symbolic ones by name) and the size of the last axis; None if that is not known."""
    if value is None or value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) == 0:
        return None
    *rows, size = value.shape
    if not isinstance(size, int) or size < 1:
        return None
    return tuple(d if isinstance(d, int) else f"d{i}" for i, d in enumerate(rows)), size


def _layer_norm(node: ir.Node, rows: Rows, size: int, kernels: Kernels, twins: Twins) -> bool:
    if node.attributes.get_int("axis", -1) not in (-1, len(rows)):
        return False
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return False
    x, scale, *bias = node.inputs
    if not bias or bias[0] is None:
        bias = [kernels.constant(("zeros", size), f"{node.name}_bias", lambda: np.zeros(size, np.float32))]
    if any(v is None or v.shape != ir.Shape([size]) or v.dtype != ir.DataType.FLOAT for v in (scale, bias[0])):
        return False
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    parallel = kernels.threads(rows, size * ELEMENT)
    symbol = kernels.symbol(
        ("layer_norm", rows, size, epsilon), "layer_norm",
        lambda s: layer_norm.make(rows, size, epsilon, kernels.isa, parallel, s),
    )  # fmt: skip
    _call(symbol, [x, scale, bias[0]], node, twins)
    return True


def _call(symbol: str, inputs: list[ir.Value | None], node: ir.Node, twins: Twins) -> None:
    values = [twins.first(v) for v in inputs if v is not None]
    shape = values[0].shape  # the result's, whose symbols may have other names
    assert shape is not None
    called = call(symbol, values, list(shape), node)
    twins.insert(called)
    replace(node.outputs[0], called.outputs[0])
