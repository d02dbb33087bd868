"""Dense layers on float values whose weights have 8 bits or fewer: the weights stay as they are in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.llvm.kernels import conv, few_bits
from graphopt.targets.llvm.kernels.epilogue import Epilogue
from graphopt.targets.llvm.kernels.few_bits import FewBits
from graphopt.targets.llvm.plan.epilogues import tail
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, replace

Array = np.ndarray[Any, Any]
BITS = {np.dtype(np.int8): 8, np.dtype(np.uint8): 8, np.dtype(ml_dtypes.int4): 4, np.dtype(ml_dtypes.uint4): 4}
RAISED = {np.dtype(np.int8): 128, np.dtype(ml_dtypes.int4): 8}


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """A MatMul or Gemm and what follows it; unsigned `q` [K, N], and `scale` and `zero` [blocks, N] of its weights."""

    nodes: tuple[ir.Node, ...]
    problem: FewBits
    epilogue: Epilogue
    q: Array
    scale: Array
    zero: Array
    bias: Array
    residual: ir.Value | None

    @property
    def value(self) -> ir.Value:
        """The result."""
        return self.nodes[-1].outputs[0]


def find(nodes: Sequence[ir.Node], taken: set[ir.Node]) -> list[Dense]:
    """The layers among `nodes`, none of whose nodes are `taken`."""
    position = {node: index for index, node in enumerate(nodes)}
    found: list[Dense] = []
    taken = set(taken)
    for node in reversed(nodes):
        layer = None if node in taken else _layer(node, position, taken)
        if layer is not None:
            found.append(layer)
            taken.update(layer.nodes)
    return found


def _layer(node: ir.Node, position: dict[ir.Node, int], taken: set[ir.Node]) -> Dense | None:
    if node.domain != "" or node.op_type not in ("Gemm", "MatMul"):
        return None
    x, weights = node.inputs[0], _weights(node)
    if x is None or x.shape is None or len(x.shape) < 2 or x.dtype != ir.DataType.FLOAT or weights is None:
        return None
    numbers = node.attributes
    if numbers.get_int("transA", 0) or numbers.get_float("alpha", 1.0) != 1.0 or numbers.get_float("beta", 1.0) != 1.0:
        return None
    q, scale, zero, bits, block = weights
    k, n = q.shape
    bias, own = np.zeros(n, np.float32), node.inputs[2] if len(node.inputs) > 2 else None
    if own is not None:
        array = constant_array(own)
        if array is None or array.size not in (1, n) or array.ndim > 2:
            return None
        bias = bias + array.reshape(-1)
    found = tail(node, position, taken)
    if found.bias is not None:
        bias = bias + found.bias
    rows = tuple(d if isinstance(d, int) else f"d{i}" for i, d in enumerate(list(x.shape)[:-1]))
    p = FewBits(rows, k, n, bits, block)
    return Dense(found.nodes, p, found.epilogue, q, scale, zero, bias, found.residual)


def _weights(node: ir.Node) -> tuple[Array, Array, Array, int, int] | None:
    """Unsigned integers [K, N], float32 scales and zero points [blocks, N], the number of bits, a block's size."""
    value = node.inputs[1]
    source = None if value is None else value.producer()
    if source is None or source.op_type != "DequantizeLinear" or source.domain not in ("", "graphopt"):
        return None
    q, scale, zero = (constant_array(v) for v in [*source.inputs[:3], None][:3])
    if q is None or scale is None or q.dtype not in BITS or q.ndim != 2 or scale.dtype != np.float32:
        return None
    if len(source.inputs) < 3 or source.inputs[2] is None:
        zero = np.zeros(scale.shape, q.dtype)
    if zero is None:
        return None
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    axis, block = source.attributes.get_int("axis", 1) % 2, source.attributes.get_int("block_size", 0)
    along_k = 1 if turned else 0
    if scale.size > 1 and (block != 0) != (axis == along_k):
        return None
    raised = RAISED.get(q.dtype, 0)
    bits = BITS[q.dtype]
    integers = (q.astype(np.int16) + raised).astype(np.uint8)
    offset = zero.astype(np.float32) + raised
    if turned:
        integers = np.ascontiguousarray(integers.T)
    k, n = integers.shape
    if block and block % 2 and bits == 4 and block < k:
        return None  # two rows of a byte would be of different blocks
    if block:
        scale, offset = (a.T if turned else a for a in (scale, offset))
    else:
        scale, offset = (np.broadcast_to(a.reshape(1, -1), (1, n)) for a in (scale, offset))
    return integers, scale, offset, bits, min(block, k) or k


def emit(layer: Dense, kernels: Kernels, twins: Twins) -> None:
    """Put the kernel call in front of the layer's last node."""
    p, node, lanes = layer.problem, layer.nodes[0], kernels.isa.lanes
    x, shape = node.inputs[0], layer.value.shape
    assert x is not None
    assert shape is not None
    constants = {
        "weights": lambda: few_bits.pack(layer.q, p, lanes),
        "scale": lambda: few_bits.pack_scale(layer.scale, lanes),
        "shift": lambda: few_bits.pack_scale(-layer.zero * layer.scale, lanes),
        "bias": lambda: conv.pack_bias(layer.bias, p.co, lanes),
    }
    packed = [
        kernels.constant(("few bits", what, node), f"{node.name}_{what}", make) for what, make in constants.items()
    ]
    inputs = [twins.first(x), *packed]
    if layer.residual is not None:
        inputs.append(twins.first(layer.residual))
    parallel = kernels.threads(p.rows, p.k * p.co)
    symbol = kernels.symbol(
        (p, layer.epilogue), "few_bits", lambda s: few_bits.make(p, kernels.isa, layer.epilogue, parallel, s)
    )
    called = call(symbol, inputs, list(shape), layer.nodes[-1])
    twins.insert(called)
    replace(layer.value, called.outputs[0])
