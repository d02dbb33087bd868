"""Quantized products: Conv, Gemm and MatMul of 8-bit values, and what of the graph after them is done with their sums.

What follows a product is matched as for the CPU's kernels (`targets/llvm/plan/integer`), so that both targets compute
the same; here weights may be of any rank, and both operands of a MatMul be computed, as in attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.targets.llvm.plan.integer.layers import Behind, behind
from graphopt.targets.llvm.plan.integer.region import Quantized, dequantized, last_first
from graphopt.targets.llvm.plan.weights import Weight, bias_of, weight_of

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A region around one Conv, Gemm or MatMul, the first of `nodes`.

    `w`: constant weights, of zero point 0, or the other 8-bit operand. `bias`: int32, one a channel or one in all.
    `m`: as many; what a step of the sums is worth, in steps of the result if ``behind.step`` is given, else absolutely.
    """

    nodes: tuple[ir.Node, ...]
    x: Quantized
    w: Weight | Quantized
    bias: Array
    m: Array
    behind: Behind


def find(nodes: Sequence[ir.Node]) -> list[Product]:
    """The products among `nodes`; of two that could add each other's result the later one does."""
    return last_first(nodes, set(), _product)


def _product(node: ir.Node, position: dict[ir.Node, int], taken: set[ir.Node]) -> Product | None:
    if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul") or node.outputs[0].shape is None:
        return None
    x, w = dequantized(node.inputs[0]), weight_of(node.inputs[1])
    other = dequantized(node.inputs[1]) if w is None and node.op_type == "MatMul" else None
    if x is None or x.value.shape is None:
        return None
    if w is not None and _fits(node, x, w):
        return _with(node, x, w, np.asarray(x.scale * w.scale), position, taken)
    if other is not None and other.value.shape is not None and min(len(x.value.shape), len(other.value.shape)) > 1:
        return _with(node, x, other, np.asarray(x.scale * other.scale).reshape(1), position, taken)
    return None


def _fits(node: ir.Node, x: Quantized, w: Weight) -> bool:
    """Whether the scales of the weights are those of output channels, and the operator is a plain product."""
    numbers, single = node.attributes, w.scale.size == 1
    match node.op_type:
        case "Conv":
            return w.values.ndim > 2 and (single or w.axis == 0)
        case "Gemm":
            plain = numbers.get_float("alpha", 1.0) == 1.0 and numbers.get_float("beta", 1.0) == 1.0
            turned = numbers.get_int("transB", 0) == 1
            return plain and not numbers.get_int("transA", 0) and (single or w.axis == (0 if turned else 1))
        case _:
            rank = w.values.ndim
            return min(rank, len(x.value.shape or ())) > 1 and (single or w.axis == rank - 1)


def _with(
    node: ir.Node, x: Quantized, w: Weight | Quantized, scale: Array, position: dict[ir.Node, int], taken: set[ir.Node]
) -> Product | None:
    after = behind(node, position, taken)
    channels = _channels(node)
    many = scale.size > 1 or len(node.inputs) > 2 or after.bias is not None
    if many and channels is None:
        return None
    scale = np.broadcast_to(scale, (channels,)) if many and channels is not None else scale
    unit = scale.astype(np.float64)
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is not None and not _is_of_channels(given, node, scale.size):
        return None
    bias = bias_of(given, unit)
    if bias is None:
        return None
    if after.bias is not None:
        more = np.rint(after.bias / unit)
        if np.any(np.abs(more) >= 2**31):
            return None
        bias = (bias + more).astype(np.int64).astype(np.int32)
    m = scale if after.step is None else scale / after.step
    return Product((node, *after.nodes), x, w, bias, m, after)


def _channels(node: ir.Node) -> int | None:
    shape = node.outputs[0].shape
    size = None if shape is None else shape[1 if node.op_type == "Conv" else -1]
    return size if isinstance(size, int) else None


def _is_of_channels(bias: ir.Value, node: ir.Node, channels: int) -> bool:
    """Not the column that Gemm may add as well."""
    shape = bias.shape
    return shape is not None and (len(shape) == 0 or node.op_type == "Conv" or shape[-1] in (1, channels)) and (
        len(shape) < 2 or all(size == 1 for size in list(shape)[:-1])
    )  # fmt: skip
