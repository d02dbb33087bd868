"""Where the weights are: the constant operand of Conv, ConvTranspose, Gemm and MatMul, and what its axes mean."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators (of the default domain) whose constant operand is a weight."""
_RENAMES_ONLY = frozenset({"Identity", "Transpose"})
_KEEPS_VALUES = _RENAMES_ONLY | {"Reshape", "Squeeze", "Unsqueeze", "Flatten"}


@dataclasses.dataclass(frozen=True)
class Weight:
    """The weight of `node` at `node.inputs[index]`, and the constant `root` it comes from.

    Axis a of the operand is axis ``permutation[a]`` of the root; None when a Reshape stands between them.
    """

    node: ir.Node
    index: int
    root: ir.Value
    permutation: tuple[int, ...] | None

    @property
    def rank(self) -> int | None:
        """Rank of the operand, where it is known."""
        if self.permutation is not None:
            return len(self.permutation)
        shape = self.node.inputs[self.index].shape  # pyright: ignore[reportOptionalMemberAccess]
        return None if shape is None else shape.rank()


def is_weighted(node: ir.Node) -> bool:
    """Is this an operator that has weights?"""
    return node.domain in ("", "ai.onnx") and node.op_type in WEIGHTED


def find_weight(node: ir.Node) -> Weight | None:
    """The weight of a weighted node, or None when that operand is computed at run time."""
    for index in (1, 0) if node.op_type == "MatMul" else (1,):
        operand = node.inputs[index] if index < len(node.inputs) else None
        found = None if operand is None else _trace(operand)
        if found is not None:
            return Weight(node, index, *found)
    return None


def _trace(value: ir.Value) -> tuple[ir.Value, tuple[int, ...] | None] | None:
    """The constant that `value` is a rearrangement of, and the permutation of its axes."""
    array = constant_array(value)
    if array is not None:
        return value, tuple(range(array.ndim))
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _KEEPS_VALUES:
        return None
    found = _trace(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    if found is None:
        return None
    root, before = found
    if before is None or node.op_type not in _RENAMES_ONLY:
        return root, None
    if node.op_type == "Identity":
        return root, before
    order = node.attributes.get_ints("perm", tuple(reversed(range(len(before)))))
    return root, tuple(before[axis] for axis in order)


def weight_array(weight: Weight) -> np.ndarray[Any, Any] | None:
    """The operand's value with the Transposes applied; None when a Reshape stands before the root."""
    array = constant_array(weight.root)
    return None if array is None or weight.permutation is None else array.transpose(weight.permutation)


def weight_reader(weight: Weight) -> Callable[[], np.ndarray[Any, Any]]:
    """What reads the operand's value, Transposes applied, also when the weight has left the graph.

    It holds the tensor, which for weights in a file beside the model is not their bytes.
    """
    tensor, permutation = ir.convenience.get_const_tensor(weight.root), weight.permutation
    assert tensor is not None
    return lambda: tensor.numpy() if permutation is None else tensor.numpy().transpose(permutation)


def input_axis(weight: Weight) -> int | None:
    """Axis of the operand along which products are summed; None when its rank is not known.

    Conv ``[Cout, Cin/group, ...]``: 1. ConvTranspose ``[Cin, Cout/group, ...]``: 0. Gemm ``[K, N]``: 0, and 1
    with transB. MatMul: the last but one of a right operand (the only one of a vector), the last of a left one.
    """
    node, rank = weight.node, weight.rank
    if rank is None:
        return None
    match node.op_type:
        case "Conv":
            return 1
        case "ConvTranspose":
            return 0
        case "Gemm":
            return 1 if node.attributes.get_int("transB", 0) else 0
        case _:
            return max(rank - 2, 0) if weight.index == 1 else rank - 1


def output_axis(weight: Weight) -> int | None:
    """Axis of the operand that counts output channels; None where no single axis does.

    Conv: 0. ConvTranspose: 1, and none when grouped (axis 1 counts the channels within a group). Gemm: 1, and 0
    with transB. MatMul of two axes: 1 of a right operand, 0 of a left one; none for batched weights and vectors.
    """
    node = weight.node
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1 if node.attributes.get_int("group", 1) == 1 else None
        case "Gemm":
            return 0 if node.attributes.get_int("transB", 0) else 1
        case _:
            return weight.index if weight.rank == 2 else None


def matches(node: ir.Node, patterns: Sequence[str]) -> bool:
    """Does one of the patterns (``*`` and ``?`` as in file names) match the node's name or operator?"""
    return any(
        fnmatch.fnmatchcase(node.name or "", pattern) or fnmatch.fnmatchcase(node.op_type, pattern)
        for pattern in patterns
    )
