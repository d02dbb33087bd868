"""Conv, Gemm and MatMul as matrix products, from shapes alone: all that a bare array knows of a layer."""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from graphopt.targets.npu.shapes import OPEN, static_shape


@dataclasses.dataclass(frozen=True)
class Product:
    """`groups` products of (m x k) by (k x n). `bytes`: int8 input, weights and output, each once."""

    groups: int
    m: int
    n: int
    k: int
    bytes: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padding included."""
        return self.groups * self.m * self.n * self.k


def product_of(node: ir.Node) -> Product | str:
    """The product that `node` (Conv, Gemm or MatMul) is, or why it is none."""
    x, w, y = (static_shape(value) for value in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if x is None or w is None or y is None:
        return OPEN
    moved = math.prod(x) + math.prod(w) + math.prod(y)
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        return Product(groups, y[0] * math.prod(y[2:]), w[0] // groups, math.prod(w[1:]), moved)
    if node.op_type == "Gemm":
        k = x[0] if node.attributes.get_int("transA", 0) else x[1]
        return Product(1, y[0], y[1], k, moved)
    if len(x) == 1 or len(w) == 1:
        return "it is a product with a vector of one dimension"
    if len(w) == 2 or math.prod(w[:-2]) == 1:
        return Product(1, math.prod(x[:-1]), w[-1], w[-2], moved)
    return Product(math.prod(y[:-2]), x[-2], w[-1], w[-2], moved)
