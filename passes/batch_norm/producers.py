"""Weighted operators as producers: ``s·f(x) + t`` becomes f with other weights, at most one Add behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.passes.batch_norm.affine import Affine, column, of_batch_norm
from graphopt.passes.batch_norm.plan import Plan, feed, insert_add, set_float
from graphopt.passes.batch_norm.reading import Left, integer, known, label, number, rank, same_channels
from graphopt.passes.batch_norm.weights import Weight, multiply, rounded, weight

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    Array = np.ndarray[Any, Any]


def into_conv(plan: Plan, node: ir.Node, affine: Affine, axis: int) -> None:
    """``W'[c] = s[c]·W[c]`` for W [Cout, Cin/g, ...], grouped or not; ``b' = s·b + t``."""
    w = weight(node, 1)
    _expect(node, axis, w.array.shape[0], affine)
    multiply(plan, w, column(affine.scale, 0, w.array.ndim))
    set_bias(plan, node, w, affine.scale * bias(node, affine.channels) + affine.shift)


def into_conv_transpose(plan: Plan, node: ir.Node, affine: Affine, axis: int) -> None:
    """W is [Cin, Cout/g, ...], the inputs of group i being rows i·Cin/g to (i+1)·Cin/g; ``b' = s·b + t``."""
    w, groups = weight(node, 1), integer(node, "group", 1)
    inputs, outputs = w.array.shape[:2]
    _expect(node, axis, outputs * groups, affine)
    factor = affine.scale.reshape(groups, outputs)
    if groups > 1:
        factor = np.repeat(factor, inputs // groups, axis=0)
    multiply(plan, w, factor.reshape(*factor.shape, *(1,) * (w.array.ndim - 2)))
    set_bias(plan, node, w, affine.scale * bias(node, affine.channels) + affine.shift)


def into_gemm(plan: Plan, node: ir.Node, affine: Affine, axis: int) -> None:
    """``Y = α·A·B + β·C``: columns scale B, rows (behind a transposition) scale A; ``C' = s·β·C + t``, ``β' = 1``."""
    transposed = bool(integer(node, "transB" if axis else "transA", 0))
    w = weight(node, axis)
    along = axis if not transposed else 1 - axis
    same_channels(node, w.array.shape[along], affine.channels)
    scale, shift = column(affine.scale, axis, 2), column(affine.shift, axis, 2)
    beta_c = number(node, "beta", 1.0) * gemm_bias(node)
    multiply(plan, w, column(affine.scale, along, 2))
    set_gemm_bias(plan, node, w, scale * beta_c + shift)


def into_matmul(plan: Plan, node: ir.Node, affine: Affine, axis: int) -> None:
    """The last axis scales B, the one before it A, a batch axis the constant operand that has it; t becomes an Add."""
    dims, ranks = rank(node.outputs[0]), [rank(v) for v in node.inputs]
    if min(ranks) < 2:
        raise Left(f"{label(node)} multiplies by a vector")
    index = {dims - 1: 1, dims - 2: 0}.get(axis)
    if index is None:
        index = 0 if known(node.inputs[1]) is None else 1
    w = weight(node, index)
    along = axis - dims + w.array.ndim
    if along < 0 or w.array.shape[along] != affine.channels:
        raise Left(f"weight '{w.name}' of {label(node)} has no axis of {affine.channels} channels")
    multiply(plan, w, column(affine.scale, along, w.array.ndim))
    if affine.shifts:
        shift = affine.shift if axis == dims - 1 else column(affine.shift, axis, dims)
        plan.add(insert_add, node, rounded(shift, w.dtype, f"shift of {label(node)}"))


def into_batch_norm(plan: Plan, node: ir.Node, affine: Affine, axis: int) -> None:
    """``γ' = s·γ``, ``β' = s·β + t``."""
    of_batch_norm(node)
    gamma, beta = weight(node, 1, "scale"), weight(node, 2, "bias")
    _expect(node, axis, len(gamma.array), affine)
    multiply(plan, gamma, affine.scale)
    folded = rounded(affine.scale * beta.array + affine.shift, beta.dtype, f"bias of {label(node)}")
    plan.add(feed, node, 2, folded, f"{beta.name}_folded")


ABSORBERS: dict[str, Callable[[Plan, ir.Node, Affine, int], None]] = {
    "Conv": into_conv,
    "ConvTranspose": into_conv_transpose,
    "Gemm": into_gemm,
    "MatMul": into_matmul,
    "BatchNormalization": into_batch_norm,
}


def bias(node: ir.Node, channels: int) -> Array:
    """The bias of a convolution in float64, zeros where it has none."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(channels)
    return weight(node, 2, "bias").array.astype(np.float64)


def set_bias(plan: Plan, node: ir.Node, w: Weight, array: Array) -> None:
    """Plan the new bias, none where there is none and none is needed."""
    if array.any() or (len(node.inputs) > 2 and node.inputs[2] is not None):
        folded = rounded(array, w.dtype, f"bias of {label(node)}")
        plan.add(feed, node, 2, folded, f"{node.name}_bias_folded")


def gemm_bias(node: ir.Node) -> Array:
    """C of a Gemm in float64, at least one-dimensional."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(1)
    return weight(node, 2, "bias").array.astype(np.float64)


def set_gemm_bias(plan: Plan, node: ir.Node, w: Weight, array: Array) -> None:
    """Plan C, with β = 1; a row keeps one dimension."""
    row = array[0] if array.ndim == 2 and array.shape[0] == 1 else array
    set_bias(plan, node, w, row)
    if number(node, "beta", 1.0) != 1.0:
        plan.add(set_float, node, "beta", 1.0)


def _expect(node: ir.Node, axis: int, channels: int, affine: Affine) -> None:
    if axis != 1:
        raise Left(f"the map's axis {axis} is not the axis of the channels of {label(node)}")
    same_channels(node, channels, affine.channels)
