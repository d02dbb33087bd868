"""Dense layers and 1x1 convolutions on float values whose weights have 8 bits or fewer: these stay so in memory.

Where a program's weights are unpacked when it is loaded, only large weights that few rows are multiplied with do: what
such a layer takes goes by the bytes of its weights, what others take by products that float32 kernels are faster at.
"""

from __future__ import annotations

import dataclasses
import math
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
from graphopt.targets.llvm.plan.integer.region import last_first
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, image, replace

Array = np.ndarray[Any, Any]
BITS = {np.dtype(np.int8): 8, np.dtype(np.uint8): 8, np.dtype(ml_dtypes.int4): 4, np.dtype(ml_dtypes.uint4): 4}
LARGE = 1 << 20
"""Bytes of float32 weights from which reading fewer of them pays: they leave no room in a core's cache."""
RAISED = {np.dtype(np.int8): 128, np.dtype(ml_dtypes.int4): 8}


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """A MatMul, Gemm or 1x1 Conv and what follows it; its weights are unsigned.

    `q` [K, N], `scale` and `zero` [blocks, N].
    """

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


@dataclasses.dataclass(frozen=True)
class Place:
    """Whether a layer's weights stay in few bits in memory (`worth`), and why."""

    worth: bool
    reason: str

    def __str__(self) -> str:
        return self.reason


def place(layer: Dense) -> Place:
    """For a program whose weights are unpacked when it is loaded; open dimensions count as one row."""
    p = layer.problem
    rows = math.prod(size for size in p.rows if isinstance(size, int))
    worth = rows < few_bits.MANY and 4 * p.k * p.co >= LARGE
    stay = f"stay {p.bits} bits" if worth else f"of {p.bits} bits in the file are float32 once loaded"
    return Place(worth, f"weights {stay}: {p.k} x {p.co}, read for {rows} row{'' if rows == 1 else 's'}")


def find(nodes: Sequence[ir.Node], taken: set[ir.Node]) -> list[Dense]:
    """The layers among `nodes`, none of whose nodes are `taken`."""
    return last_first(nodes, taken, _layer)


def _layer(node: ir.Node, position: dict[ir.Node, int], taken: set[ir.Node]) -> Dense | None:
    if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    x, weights = node.inputs[0], _weights(node)
    if x is None or x.shape is None or len(x.shape) < 2 or x.dtype != ir.DataType.FLOAT or weights is None:
        return None
    positions = image(x)
    if node.op_type == "Conv" and (positions is None or not _is_product(node)):
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
    if node.op_type == "Conv" and positions is not None:
        rows = (positions.batch, positions.h, positions.w)
    p = FewBits(rows, k, n, bits, block)
    return Dense(found.nodes, p, found.epilogue, q, scale, zero, bias, found.residual)


def _is_product(node: ir.Node) -> bool:
    """Whether each position of a Conv's result depends on the same position of its input only, and all channels."""
    numbers = node.attributes
    same = set(numbers.get_ints("strides", [])) <= {1} and set(numbers.get_ints("pads", [])) <= {0}
    return same and numbers.get_int("group", 1) == 1


def _weights(node: ir.Node) -> tuple[Array, Array, Array, int, int] | None:
    """Unsigned integers [K, N], scales and uint8 zero points [blocks, N], the number of bits, a block's size."""
    value = node.inputs[1]
    source = None if value is None else value.producer()
    if node.op_type == "Conv":
        if value is None or value.shape is None or any(d != 1 for d in value.shape[2:]):
            return None
        if source is not None and source.domain == "" and source.op_type == "Reshape" and source.inputs[0] is not None:
            source = source.inputs[0].producer()
    if source is None or source.op_type != "DequantizeLinear" or source.domain not in ("", "graphopt"):
        return None
    q, scale, zero = (constant_array(v) for v in [*source.inputs[:3], None][:3])
    if q is None or scale is None or q.dtype not in BITS or scale.dtype != np.float32:
        return None
    if len(source.inputs) < 3 or source.inputs[2] is None:
        zero = np.zeros(scale.shape, q.dtype)
    if zero is None:
        return None
    rank = q.ndim
    if node.op_type == "Conv" and rank > 2:
        q, scale, zero = (a if a.ndim < 2 else a.reshape(a.shape[:2]) for a in (q, scale, zero))
    if q.ndim != 2:
        return None
    turned = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1)
    axis, block = source.attributes.get_int("axis", 1) % rank, source.attributes.get_int("block_size", 0)
    along_k = 1 if turned else 0
    if scale.size > 1 and (block != 0) != (axis == along_k):
        return None
    raised = RAISED.get(q.dtype, 0)
    bits = BITS[q.dtype]
    integers: Array = (q.astype(np.int16) + raised).astype(np.uint8)
    offset: Array = (zero.astype(np.int16) + raised).astype(np.uint8)
    if turned:
        integers = np.ascontiguousarray(integers.T)
    k, n = integers.shape[0], integers.shape[1]
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
        "zero": lambda: few_bits.pack_scale(layer.zero, lanes),
        "bias": lambda: conv.pack_bias(layer.bias, p.co, lanes),
    }
    packed = [
        kernels.constant(("few bits", what, node), f"{node.name}_{what}", make) for what, make in constants.items()
    ]
    on_twins = node.op_type == "Conv"
    dims = list(shape)
    if on_twins:
        whole = image(layer.value)
        assert whole is not None
        dims = whole.last
    inputs = [twins.last(x) if on_twins else twins.first(x), *packed]
    if layer.residual is not None:
        other = layer.residual
        inputs.append(twins.shaped(twins.last(other), dims, other) if on_twins else twins.first(other))
    parallel = kernels.threads(p.rows, p.k * p.co)
    symbol = kernels.symbol(
        (p, layer.epilogue), "few_bits", lambda s: few_bits.make(p, kernels.isa, layer.epilogue, parallel, s)
    )
    called = call(symbol, inputs, dims, layer.nodes[-1])
    twins.insert(called)
    if on_twins:
        twins.set(layer.value, called.outputs[0])
    else:
        replace(layer.value, called.outputs[0])
