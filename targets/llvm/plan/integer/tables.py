"""Functions of one 8-bit value, between a DequantizeLinear and a QuantizeLinear: what they yield for all 256 values.

onnxruntime computes the table from the very nodes when the model is compiled, so the result is theirs bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.llvm.kernels.grid import Grid
from graphopt.targets.llvm.plan.evaluate import evaluate
from graphopt.targets.llvm.plan.integer.region import quantized


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
    real = (np.arange(256, dtype=np.float32) - np.float32(grid.zero)) * np.float32(grid.scale)
    shape = [1] * (len(start.shape or ()) - 1) + [256]
    return evaluate(nodes, {start: real.reshape(shape)}, [nodes[-1].outputs[0]])[0].reshape(-1)
