"""Which regions act on each position by itself, mixing nothing but channels."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.passes.distil.affine import per_channel
from graphopt.passes.distil.region import Region
from graphopt.passes.distil.student import UnsupportedError

UNARY = frozenset(
    {
        *("Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"),
        *("Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh"),
    }
)
BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "Sub"})


def channel_axis(region: Region) -> Literal[1, -1]:
    """The axis that `region` mixes: 1 (Conv) or -1 (Gemm, MatMul); every other axis is only carried along.

    Raises `UnsupportedError` naming the node that looks beyond its own position, or mixes another axis.
    """
    types = {node.op_type for node in region.nodes}
    flat = region.inputs[0].shape is not None and len(region.inputs[0].shape) == 2
    axis = 1 if types & {"Conv", "BatchNormalization"} and not flat else -1
    if axis == 1 and types & {"Gemm", "MatMul"}:
        raise UnsupportedError("it mixes both axis 1 (Conv) and the last axis (Gemm, MatMul)")
    inside = {region.inputs[0], *(value for node in region.nodes for value in node.outputs)}
    for node in region.nodes:
        reason = "of another domain" if node.domain not in ("", "ai.onnx") else _mixes(node, axis, inside)
        if reason:
            raise UnsupportedError(f"`{node.name}` ({node.op_type}) is {reason}")
    return axis


def channels(value: ir.Value, axis: int) -> int:
    """The size of the channel axis of `value`."""
    size = None if value.shape is None else value.shape[axis]
    if not isinstance(size, int):
        raise UnsupportedError(f"the number of channels of `{value.name}` is not known")
    return size


def _mixes(node: ir.Node, axis: int, inside: set[ir.Value]) -> str | None:
    """Why `node` is not pointwise, or None."""
    moving = [value for value in node.inputs if value in inside]
    fixed = [value for value in node.inputs if value is not None and value not in inside]
    if any(constant_array(value) is None for value in fixed):
        return "fed by more than constants"
    if node.op_type == "Conv":
        return None if _is_1x1(node) else "not a 1 x 1 convolution of stride 1"
    if node.op_type in ("Gemm", "MatMul"):
        return _matrix(node, moving)
    if node.op_type == "BatchNormalization":
        return "in training mode" if node.attributes.get_int("training_mode", 0) else None
    if node.op_type in UNARY:
        return None
    if node.op_type not in BINARY:
        return "not an operator that acts on each position alone"
    shape = moving[0].shape
    for value in fixed:
        per_channel(value, None if shape is None else len(shape), axis, channels(moving[0], axis))
    return None


def _is_1x1(node: ir.Node) -> bool:
    weight = node.inputs[1]
    kernel = None if weight is None or weight.shape is None else list(weight.shape)[2:]
    steps = [*node.attributes.get_ints("strides", ()), *(k for k in kernel or (0,) if isinstance(k, int))]
    return all(step == 1 for step in steps) and not any(node.attributes.get_ints("pads", ()))


def _matrix(node: ir.Node, moving: list[ir.Value]) -> str | None:
    right = constant_array(node.inputs[1])
    if len(moving) != 1 or node.inputs[0] is not moving[0] or right is None or right.ndim != 2:
        return "not a product with a constant matrix on the right"
    if node.op_type == "MatMul":
        return None
    if node.attributes.get_int("transA", 0):
        return "a Gemm with transA=1"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        per_channel(node.inputs[2], 2, -1, right.shape[0 if node.attributes.get_int("transB", 0) else 1])
    return None
