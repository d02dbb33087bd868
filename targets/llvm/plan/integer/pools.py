"""Average pooling of 8-bit values, with the QuantizeLinear behind it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.llvm.kernels import average
from graphopt.targets.llvm.kernels.average import Average
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.requantise import Range
from graphopt.targets.llvm.plan.convs import window
from graphopt.targets.llvm.plan.integer.region import Quantized, dequantized, only_reader, quantized
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, image


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """A pooling node and the quantizer that alone reads it, if one does."""

    nodes: tuple[ir.Node, ...]
    x: Quantized
    problem: Average

    @property
    def value(self) -> ir.Value:
        """The result."""
        return self.nodes[-1].outputs[0]


def find(nodes: Sequence[ir.Node], taken: set[ir.Node]) -> list[Pool]:
    """The average pools of quantized values among `nodes`, none of whose nodes are `taken`."""
    found = [_pool(node, taken) for node in nodes if node.domain == "" and node not in taken]
    return [pool for pool in found if pool is not None]


def _pool(node: ir.Node, taken: set[ir.Node]) -> Pool | None:
    x = dequantized(node.inputs[0]) if node.inputs else None
    c = None if x is None else _window(node)
    if x is None or c is None:
        return None
    padded = node.attributes.get_int("count_include_pad", 0) == 1
    q = only_reader(node.outputs[0])
    result = None if q is None or q in taken else quantized(q)
    if q is None or result is None:
        return Pool((node,), x, Average(c, x.zero, float(x.scale), None, padded))
    return Pool((node, q), x, Average(c, x.zero, float(np.float32(x.scale / result.scale)), Range(result.zero), padded))


def _window(node: ir.Node) -> Conv | None:
    x, y = image(node.inputs[0]), image(node.outputs[0])
    if x is None or y is None:
        return None
    whole = Conv(x.batch, x.h, x.w, x.c, x.c, (x.h, x.w))
    match node.op_type:
        case "AveragePool":
            if node.attributes.get_int("ceil_mode", 0):
                return None
            return window(node, node.attributes.get_ints("kernel_shape", []))
        case "GlobalAveragePool":
            return whole
        case "ReduceMean":
            rank = len(node.outputs[0].shape or ())
            return whole if _axes(node, rank) == list(range(2, rank)) else None
        case _:
            return None


def _axes(node: ir.Node, rank: int) -> list[int]:
    """The axes that a reduction runs over, as far as they are constant and are kept with size 1."""
    given = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = list(node.attributes.get_ints("axes", [])) if given is None else given.reshape(-1).tolist()
    return sorted(int(axis) % rank for axis in axes) if node.attributes.get_int("keepdims", 1) else []


def emit(found: Pool, kernels: Kernels, twins: Twins) -> None:
    """Put the kernel call in front of the last node, and make its result the twin of the value."""
    p, c = found.problem, found.problem.window
    shape = image(found.value)
    assert shape is not None
    parallel = kernels.threads((c.n, c.oh, c.ow), c.co * math.prod(c.kernel))
    symbol = kernels.symbol(p, "average", lambda s: average.make(p, kernels.isa, parallel, s))
    called = call(symbol, [twins.last(found.x.value)], [shape.n, c.oh, c.ow, c.co], found.nodes[-1])
    twins.insert(called)
    twins.set(found.value, twins.shaped(called.outputs[0], shape.last, found.value))
