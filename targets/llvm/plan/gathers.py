"""Gather along any axis onto its kernel."""

from __future__ import annotations

import math

import onnx_ir as ir

from graphopt.targets.llvm.kernels import gather
from graphopt.targets.llvm.kernels.gather import Gather
from graphopt.targets.llvm.plan.kernels import ELEMENT, Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, replace


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute a Gather of float32 rows of known length; says whether it did."""
    x, index = node.inputs
    if x is None or index is None or x.shape is None or index.shape is None or x.dtype != ir.DataType.FLOAT:
        return False
    if index.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or len(x.shape) < 2:
        return False
    axis, open_rows = node.attributes.get_int("axis", 0) % len(x.shape), not x.shape.is_static()
    if open_rows and not index.shape.is_static():
        return False  # a result's open dimensions are those of one input
    if any(not isinstance(d, int) for d in list(x.shape)[axis + 1 :]) or 0 in list(x.shape) or 0 in list(index.shape):
        return False
    p = Gather(
        tuple(d if isinstance(d, int) else f"x{i}" for i, d in enumerate(x.shape)), axis,
        tuple(d if isinstance(d, int) else f"i{i}" for i, d in enumerate(index.shape)),
        "int64" if index.dtype == ir.DataType.INT64 else "int32",
    )  # fmt: skip
    if p.inner < kernels.isa.lanes // 4:
        return False
    first = not open_rows
    parallel = kernels.threads(p.index, math.prod([p.inner, ELEMENT]))
    symbol = kernels.symbol(("gather", p, first), "gather", lambda s: gather.make(p, kernels.isa, parallel, first, s))
    x, index = twins.first(x), twins.first(index)
    assert x.shape is not None
    assert index.shape is not None
    shape = [*list(x.shape)[:axis], *index.shape, *list(x.shape)[axis + 1 :]]
    called = call(symbol, [index, x] if first else [x, index], shape, node)
    twins.insert(called)
    replace(node.outputs[0], called.outputs[0])
    return True
