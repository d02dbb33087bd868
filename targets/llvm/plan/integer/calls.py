"""Calls of the kernels for `layers`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.targets.llvm.kernels import arithmetic, contract
from graphopt.targets.llvm.plan.integer.layers import Layer, find
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Dim, Twins, image, replace

__all__ = ["emit", "find"]


def emit(layer: Layer, kernels: Kernels, twins: Twins) -> None:
    """Put the kernel call in front of the layer's last node."""
    p, isa = layer.problem, kernels.isa
    dot = arithmetic.choose(isa, contract.as_runs(layer.weight, p))
    node, name = layer.nodes[0], layer.nodes[0].name
    constants = {
        "weights": lambda: contract.pack(layer.weight, p, dot, isa.lanes),
        "bias": lambda: contract.pack_bias(layer.bias, layer.weight, p, dot, isa.lanes),
        "multiplier": lambda: np.ascontiguousarray(layer.m, np.float32),
    }
    packed = [kernels.constant(("integer", what, node), f"{name}_{what}", make) for what, make in constants.items()]
    positions = p.rows if p.rows is not None else (p.conv.n, p.conv.oh, p.conv.ow)
    parallel = kernels.threads(positions, p.conv.co * layer.weight[0].size)
    symbol = kernels.symbol(
        ("contract", p, dot, layer.finish),
        "integer_dense" if p.rows is not None else "integer_conv",
        lambda s: contract.make(p, dot, isa, layer.finish, parallel, s),
    )
    dtype = ir.DataType.FLOAT if layer.finish.range is None else ir.DataType.UINT8
    if p.rows is not None:
        inputs = [twins.first(layer.x), *packed]
        if layer.residual is not None:
            inputs.append(twins.first(layer.residual))
        assert layer.value.shape is not None
        called = call(symbol, inputs, list(layer.value.shape), layer.nodes[-1], dtype)
        twins.insert(called)
        replace(layer.value, called.outputs[0])
        return
    shape = image(layer.value)
    assert shape is not None
    dims: list[Dim] = [shape.n, p.conv.oh, p.conv.ow, p.conv.co]
    inputs = [twins.last(layer.x), *packed]
    if layer.residual is not None:
        inputs.append(twins.shaped(twins.last(layer.residual), dims, layer.residual))
    called = call(symbol, inputs, dims, layer.nodes[-1], dtype)
    twins.insert(called)
    twins.set(layer.value, twins.shaped(called.outputs[0], shape.last, layer.value))
