"""Products and convolutions of values that are quantized at run time: their zero point is known only then.

::

    MatMulInteger(q, W, z) = q W - z * sum_k W[k]
    ConvInteger(q, W, z) = q * W - z * (1 * W)

`q W` is a quantized product of zero point 0 and scale 1, which the integer kernels take; they yield it as float32, as
the Cast behind it asks for. (Exact below 2^24, else rounded as the Cast would.) Padding is z, for which 0 stands after
the subtraction: the convolution of an image of ones with W, a constant, has it right at the edges.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import constant_array, infer_shapes
from graphopt.targets.integer import reference
from graphopt.targets.llvm.plan.integer.region import only_reader
from graphopt.targets.lowering.integer_ops import expand_dynamic
from graphopt.targets.lowering.nodes import constant, put, take_place
from graphopt.targets.lowering.qlinear import operand

F = ir.DataType.FLOAT


def plan_dynamic(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place: products of constant weights, and DynamicQuantizeLinear."""
    for node in list(model.graph):
        if node.domain == "" and node.op_type in ("MatMulInteger", "ConvInteger"):
            _product(node)
    if expand_dynamic(model):
        infer_shapes(model)
    common.RemoveUnusedNodesPass()(model)


def _product(node: ir.Node) -> None:
    q, w, cast = node.inputs[0], constant_array(node.inputs[1]), only_reader(node.outputs[0])
    zero, zero_w = operand(node, 2), operand(node, 3)
    if q is None or q.dtype != ir.DataType.UINT8 or w is None or cast is None or constant_array(q) is not None:
        return
    if cast.op_type != "Cast" or cast.outputs[0].dtype != F or (zero is not None and zero.shape != ir.Shape([])):
        return
    offset = np.zeros((), w.dtype) if zero_w is None else constant_array(zero_w)
    if offset is None or (offset.size > 1 and node.op_type == "ConvInteger"):
        return
    values = w.astype(np.int16) - offset.astype(np.int16)
    if values.size == 0 or values.min() < -128 or values.max() > 127:
        return
    weights = values.astype(np.int8)
    sums = _sums(node, q, weights)
    if sums is None:
        return
    one, nil = constant(node, "one", np.array(1, np.float32)), constant(node, "nil", np.array(0, np.uint8))
    left = put(node, "DequantizeLinear", [q, one, nil], dtype=F, like=q)
    integers = constant(node, "integers", weights)
    right = put(node, "DequantizeLinear", [integers, one], dtype=F, like=integers)
    like = cast.outputs[0]
    attributes = {k: v.value for k, v in node.attributes.items()}
    total = put(node, node.op_type.removesuffix("Integer"), [left, right], attributes, dtype=F, like=like)
    if zero is not None:
        real = put(node, "Cast", [zero], {"to": int(F)}, dtype=F, like=zero)
        every = constant(node, "sums", sums)
        total = put(node, "Sub", [total, put(node, "Mul", [real, every], dtype=F, like=every)], dtype=F, like=like)
    take_place(cast, total)


def _sums(node: ir.Node, q: ir.Value, w: np.ndarray) -> np.ndarray | None:
    """What `node` makes of ones, float32: as far as it is the same at all positions, of one."""
    if node.op_type == "MatMulInteger":
        return w.sum(axis=0, dtype=np.int64).astype(np.float32) if w.ndim == 2 else None
    numbers = node.attributes
    if w.ndim != 4 or numbers.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    top, left, bottom, right = numbers.get_ints("pads", [0] * 4)
    if not any((top, left, bottom, right)):
        return w.sum(axis=(1, 2, 3), dtype=np.int64).astype(np.float32).reshape(1, -1, 1, 1)
    sizes = [size for size in list(q.shape or ())[2:] if isinstance(size, int)]
    if len(sizes) < 2:
        return None
    (down, across), (dilated, along) = (numbers.get_ints(name, [1, 1]) for name in ("strides", "dilations"))
    group = numbers.get_int("group", 1)
    ones = np.ones((1, w.shape[1] * group, *sizes), np.uint8)
    found = reference.convolution(ones, 0, w, None, (down, across), (dilated, along), (top, left, bottom, right), group)
    return found.astype(np.float32)
