"""Products of values that are quantized at run time: their zero point is known only then.

::

    MatMulInteger(q, W, z) = q W - z * sum_k W[k]

`q W` is a quantized product of zero point 0 and scale 1, which the integer kernels take; they yield it as float32, as
the Cast behind MatMulInteger asks for. (Exact below 2^24, else rounded as the Cast would.)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import constant_array, infer_shapes
from graphopt.targets.llvm.plan.integer.region import only_reader
from graphopt.targets.lowering.integer_ops import expand_dynamic
from graphopt.targets.lowering.nodes import constant, put, take_place
from graphopt.targets.lowering.qlinear import operand

F = ir.DataType.FLOAT


def plan_dynamic(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place: MatMulInteger of constant weights, and DynamicQuantizeLinear."""
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "MatMulInteger":
            _product(node)
    if expand_dynamic(model):
        infer_shapes(model)
    common.RemoveUnusedNodesPass()(model)


def _product(node: ir.Node) -> None:
    q, w, cast = node.inputs[0], constant_array(node.inputs[1]), only_reader(node.outputs[0])
    zero, zero_w = operand(node, 2), operand(node, 3)
    if (
        q is None
        or q.dtype != ir.DataType.UINT8
        or w is None
        or w.ndim != 2
        or cast is None
        or constant_array(q) is not None
    ):
        return
    if cast.op_type != "Cast" or cast.outputs[0].dtype != F or (zero is not None and zero.shape != ir.Shape([])):
        return
    offset = np.zeros((), w.dtype) if zero_w is None else constant_array(zero_w)
    values = None if offset is None else w.astype(np.int16) - offset.astype(np.int16)
    if values is None or values.size == 0 or values.min() < -128 or values.max() > 127:
        return
    one, nil = constant(node, "one", np.array(1, np.float32)), constant(node, "nil", np.array(0, np.uint8))
    left = put(node, "DequantizeLinear", [q, one, nil], dtype=F, like=q)
    weights = constant(node, "integers", values.astype(np.int8))
    right = put(node, "DequantizeLinear", [weights, one], dtype=F, like=weights)
    like = cast.outputs[0]
    total = put(node, "MatMul", [left, right], dtype=F, like=like)
    if zero is not None:
        real = put(node, "Cast", [zero], {"to": int(F)}, dtype=F, like=zero)
        sums = constant(node, "sums", values.sum(axis=0, dtype=np.int64).astype(np.float32))
        total = put(node, "Sub", [total, put(node, "Mul", [real, sums], dtype=F, like=sums)], dtype=F, like=like)
    take_place(cast, total)
