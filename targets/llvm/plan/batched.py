"""Products of two computed matrices onto their kernel."""

from __future__ import annotations

import math

import onnx_ir as ir

from graphopt.targets.llvm.kernels import batched
from graphopt.targets.llvm.kernels.batched import Batched
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, replace


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute a MatMul of float32 values whose sizes are all known; says whether it did."""
    values, result = [v for v in node.inputs if v is not None], node.outputs[0]
    shapes = [_known(v) for v in (*values, result)]
    if any(s is None or len(s) < 2 or 0 in s for s in shapes):
        return False
    x, w, y = (s for s in shapes if s is not None)
    rank = len(y) - 2
    left, right = ((*[1] * (rank + 2 - len(s)), *s[:-2]) for s in (x, w))
    p = Batched(left, right, x[-2], x[-1], w[-1])
    if (*p.batch, p.m, p.n) != y:
        return False
    parallel = kernels.threads(p.batch, p.m * p.k * p.n)
    symbol = kernels.symbol(
        ("batched", p, x, w, y), "batched", lambda s: batched.make(p, [x, w, y], kernels.isa, parallel, s)
    )
    called = call(symbol, [twins.first(v) for v in values], list(y), node)
    twins.insert(called)
    replace(result, called.outputs[0])
    return math.prod(y) > 0


def _known(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or value.dtype != ir.DataType.FLOAT or not value.shape.is_static():
        return None
    return tuple(d for d in value.shape if isinstance(d, int))
