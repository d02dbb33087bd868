"""Average pools of 8-bit values, with the QuantizeLinear behind them: `targets.integer.reference.average`."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.graph import derive
from graphopt.targets.cuda.lowering.integer.emit import dequantize, quantize
from graphopt.targets.llvm.plan.integer.pools import Pool
from graphopt.targets.lowering.nodes import constant, number, put, take_place

F, I32 = ir.DataType.FLOAT, ir.DataType.INT32
EXACT = (1 << 24) // 255
"""So many 8-bit integers have a sum that float32 holds exactly, in whichever order they are added."""


def emit(pool: Pool) -> None:
    """Put the integer form in front of the last node; a window that is too large stays as it is."""
    at, p = pool.nodes[-1], pool.problem
    if math.prod(p.window.kernel) <= EXACT:
        mean = _mean(at, pool)
        take_place(at, mean if p.range is None else quantize(at, mean, p.range))


def _mean(at: ir.Node, pool: Pool) -> ir.Value:
    """``float32(sum (x - z)) * m / count``."""
    c, p, node = pool.problem.window, pool.problem, pool.nodes[0]
    result = node.outputs[0]
    if node.op_type == "AveragePool":
        total = put(at, "Cast", [_sums(at, pool)], {"to": int(F)}, dtype=F, like=result)
    else:
        real = dequantize(at, pool.x.value, 1.0, pool.x.zero)
        axes = constant(at, "axes", np.arange(2, len(pool.x.value.shape or ())))
        total = put(at, "ReduceSum", [real, axes], {"keepdims": 1}, dtype=F, like=result)
    scaled = put(at, "Mul", [total, number(at, p.m)], dtype=F, like=result)
    if p.count_padding or not any(c.pads):
        return put(at, "Div", [scaled, number(at, math.prod(c.kernel))], dtype=F, like=result)
    return put(at, "Div", [scaled, constant(at, "counts", _counts(pool))], dtype=F, like=result)


def _sums(at: ir.Node, pool: Pool) -> ir.Value:
    """Of each window, as a convolution with ones."""
    node = pool.nodes[0]
    kernel = list(node.attributes.get_ints("kernel_shape", []))
    channels = pool.problem.window.ci
    ones = constant(at, "ones", np.ones((channels, 1, *kernel), np.int8))
    attributes = {k: v.value for k, v in node.attributes.items() if k in ("strides", "dilations", "pads", "auto_pad")}
    zero = constant(at, "zero", np.array(pool.x.zero, np.uint8))
    inputs = [pool.x.value, ones, zero]
    total = put(at, "ConvInteger", inputs, {**attributes, "group": channels}, dtype=I32, like=node.outputs[0])
    made = total.producer()
    assert made is not None
    derive(made, pool.nodes)
    return total


def _counts(pool: Pool) -> np.ndarray:
    """How many elements of each window lie inside the image, float32."""
    from graphopt.targets.cuda.lowering.integer.borders import padding, taps_inside

    node = pool.nodes[0]
    ones = np.ones((1, 1, *node.attributes.get_ints("kernel_shape", [])), np.int8)
    pads = padding(node, ones.shape[2:])
    assert pads is not None
    found = taps_inside(node, ones, pads)
    assert found is not None
    return found.astype(np.float32)
