"""Functions of one 8-bit value, between a DequantizeLinear and a QuantizeLinear: what they yield for all 256 values.

onnxruntime computes the table from the very nodes when the model is compiled, so the result is theirs bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.llvm.kernels.grid import Grid
from graphopt.targets.llvm.plan.integer.region import quantized

OPSET = 20  # the first in which all unary operators exist


def grid_of(node: ir.Node, value: ir.Value) -> Grid | None:
    """What a QuantizeLinear of `value` rounds to; None for any other node."""
    result = quantized(node) if node.op_type == "QuantizeLinear" and node.inputs[0] is value else None
    return None if result is None else Grid(float(result.scale), result.zero)


def applies(start: ir.Value, nodes: Sequence[ir.Node]) -> bool:
    """Whether every element of what `nodes` make of `start` depends on one element of it."""
    inside = {start, *(v for node in nodes for v in node.outputs)}
    return all(v is None or v in inside or _is_number(v) for node in nodes for v in node.inputs)


def _is_number(value: ir.Value) -> bool:
    array = constant_array(value)
    return array is not None and array.size == 1


def table(start: ir.Value, nodes: Sequence[ir.Node], grid: Grid) -> np.ndarray:
    """uint8 [256]: what `nodes` make of each uint8 value of `start`, which stand for `grid`."""
    from graphopt import oracle

    shape = [1] * (len(start.shape or ()) - 1) + [256]
    x = ir.val("x", ir.DataType.UINT8, shape)
    scale = _initializer("x_scale", np.array(grid.scale, np.float32))
    zero = _initializer("x_zero", np.array(grid.zero, np.uint8))
    first = ir.node("DequantizeLinear", [x, scale, zero], name="x_real")
    known: dict[ir.Value, ir.Value] = {start: first.outputs[0]}
    clones, constants = [first], [scale, zero]
    for number, node in enumerate(nodes):
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            array = constant_array(value)
            if value is not None and value not in known and array is not None:
                known[value] = _initializer(f"c{len(constants)}", array)
                constants.append(known[value])
            inputs.append(None if value is None else known[value])
        clone = ir.node(node.op_type, inputs, dict(node.attributes), name=f"node{number}")
        known[node.outputs[0]] = clone.outputs[0]
        clones.append(clone)
    result = clones[-1].outputs[0]
    result.name, result.dtype, result.shape = "y", ir.DataType.UINT8, ir.Shape(shape)
    graph = ir.Graph([x], [result], nodes=clones, initializers=constants, opset_imports={"": OPSET}, name="table")
    every = np.arange(256, dtype=np.uint8).reshape(shape)
    return oracle.run(ir.Model(graph, ir_version=9), {"x": every})["y"].reshape(-1)


def _initializer(name: str, array: np.ndarray) -> ir.Value:
    return ir.val(name, ir.DataType.from_numpy(array.dtype), array.shape, const_value=ir.Tensor(array, name=name))
