"""Softmax and its logarithm over the last axis, or over the channels, which are the last axis of the twin."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.targets.llvm.kernels import softmax
from graphopt.targets.llvm.plan.kernels import ELEMENT, Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, image, replace
from graphopt.targets.llvm.plan.rows import Rows, matrix


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute `node` by the kernel; says whether it did."""
    x, result = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or x.dtype != ir.DataType.FLOAT:
        return False
    rank, log = len(x.shape), node.op_type == "LogSoftmax"
    axis = node.attributes.get_int("axis", -1) % rank
    shape, plain = image(x), matrix(x)
    if axis == 1 and rank in (3, 4) and shape is not None and shape.c > 1:
        symbol = _symbol((shape.batch, shape.h, shape.w), shape.c, log, kernels)
        called = call(symbol, [twins.last(x)], shape.last, node)
        twins.insert(called)
        twins.set(result, called.outputs[0])
        return True
    if axis != rank - 1 or plain is None:
        return False
    x = twins.first(x)
    assert x.shape is not None
    called = call(_symbol(*plain, log, kernels), [x], list(x.shape), node)
    twins.insert(called)
    replace(result, called.outputs[0])
    return True


def _symbol(rows: Rows, size: int, log: bool, kernels: Kernels) -> str:
    parallel = kernels.threads(rows, size * ELEMENT)
    return kernels.symbol(
        ("softmax", rows, size, log), "softmax",
        lambda s: softmax.make(rows, size, kernels.isa, parallel, s, log=log),
    )  # fmt: skip
