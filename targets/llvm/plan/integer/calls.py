"""Calls of the kernels for `layers`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt.targets.llvm.kernels import arithmetic, contract, depthwise_integer, winograd_integer
from graphopt.targets.llvm.plan.integer import choose
from graphopt.targets.llvm.plan.integer.layers import Layer, find
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Dim, Twins, image, replace

__all__ = ["emit", "find"]
ONE = np.float32(1)


def emit(layer: Layer, kernels: Kernels, twins: Twins) -> None:
    """Put the kernel call in front of the layer's last node."""
    p = layer.problem
    if depthwise_integer.applies(p.conv):
        packed, symbol = _depthwise(layer, kernels)
    elif choose.by_winograd(layer, kernels.isa):
        packed, symbol = _winograd(layer, kernels)
    else:
        packed, symbol = _contraction(layer, kernels)
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


def _contraction(layer: Layer, kernels: Kernels) -> tuple[list[ir.Value], str]:
    """Constants and symbol of the kernel."""
    p, isa = layer.problem, kernels.isa
    dot = arithmetic.choose(isa, contract.as_runs(layer.weight, p))
    packed = _constants(
        layer,
        kernels,
        lambda: contract.pack(layer.weight, p, dot, isa.lanes),
        lambda: contract.pack_bias(layer.bias, layer.weight, p, dot, isa.lanes),
    )
    base, parallel = "integer_dense" if p.rows is not None else "integer_conv", _parallel(layer, kernels)
    return packed, kernels.symbol(
        ("contract", p, dot, layer.finish, parallel),
        base,
        lambda s: contract.make(p, dot, isa, layer.finish, parallel, s),
    )


def _winograd(layer: Layer, kernels: Kernels) -> tuple[list[ir.Value], str]:
    p, isa, parallel = layer.problem, kernels.isa, _parallel(layer, kernels)
    packed = _constants(
        layer,
        kernels,
        lambda: winograd_integer.pack(layer.weight, isa.lanes),
        lambda: winograd_integer.pack_bias(layer.bias, layer.weight, p, isa.lanes),
        winograd_integer.QUARTER,
    )
    return packed, kernels.symbol(
        ("winograd", p, layer.finish, parallel),
        "integer_winograd",
        lambda s: winograd_integer.make(p, isa, layer.finish, parallel, s),
    )


def _depthwise(layer: Layer, kernels: Kernels) -> tuple[list[ir.Value], str]:
    p, parallel = (
        depthwise_integer.problem(layer.problem.conv, layer.problem.zero, kernels.isa),
        _parallel(layer, kernels),
    )
    packed = _constants(
        layer,
        kernels,
        lambda: depthwise_integer.pack(layer.weight, p),
        lambda: depthwise_integer.pack_bias(layer.bias, layer.weight, p),
    )
    return packed, kernels.symbol(
        (p, layer.finish, parallel),
        "integer_depthwise",
        lambda s: depthwise_integer.make(p, kernels.isa, layer.finish, parallel, s),
    )


def _constants(
    layer: Layer,
    kernels: Kernels,
    weights: Callable[[], np.ndarray],
    bias: Callable[[], np.ndarray],
    unit: np.float32 = ONE,
) -> list[ir.Value]:
    """Packed weights and bias, and multipliers for sums in steps of `unit`."""
    node = layer.nodes[0]
    made = {"weights": weights, "bias": bias, "multiplier": lambda: np.ascontiguousarray(layer.m, np.float32) * unit}
    return [kernels.constant(("integer", what, node), f"{node.name}_{what}", make) for what, make in made.items()]


def _parallel(layer: Layer, kernels: Kernels) -> bool:
    p = layer.problem
    positions = p.rows if p.rows is not None else (p.conv.n, p.conv.oh, p.conv.ow)
    return kernels.threads(positions, p.conv.co * layer.weight[0].size)
