"""Quantized products written with ONNX's own integer operators: the arithmetic of `targets.integer.reference`.

::

    acc = ConvInteger(x, W, z_x) + b                                    or MatMulInteger(x, W, z_x, z_w) + b; int32
    y   = QuantizeLinear(Clip(Cast(acc) * m, low - z_y, high - z_y), 1, z_y)
    y   = QuantizeLinear(Clip(Cast(acc) * m + DequantizeLinear(r, m_r, z_r), ...), 1, z_y)      with a residual

to the bit, where float32 products are rounded before they are added. onnxruntime runs it as well.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph import derive
from graphopt.targets.cuda.lowering.integer.products import Product
from graphopt.targets.llvm.kernels.requantise import Range
from graphopt.targets.llvm.plan.integer.region import Quantized
from graphopt.targets.lowering.nodes import Attribute, constant, number, put, take_place
from graphopt.targets.lowering.origins import does_arithmetic_of

F, I32, U8 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.UINT8


def emit(product: Product) -> None:
    """Put the integer form in front of what it takes the place of."""
    node, after = product.nodes[0], product.behind
    limits = after.finish.range
    if limits is None or after.finish.step is not None:  # activations: they stay, and read the sums as float32
        with_bias = product.nodes[1] if after.bias is not None else node
        take_place(with_bias, _scaled(with_bias, product))
        return
    at = product.nodes[-1]
    value, residual = _scaled(at, product), after.finish.residual
    if residual is not None and after.residual is not None:
        if residual.inner is not None:
            inner, worth = residual.inner
            value = dequantize(at, quantize(at, value, inner), worth, inner.zero)
        value = put(at, "Add", [value, dequantize(at, after.residual, residual.m, residual.zero)], dtype=F, like=value)
    take_place(at, quantize(at, value, limits))


def quantize(at: ir.Node, steps: ir.Value, limits: Range) -> ir.Value:
    """``clamp(rint(steps) + zero, low, high)`` as uint8."""
    low, high = limits.low - limits.zero, limits.high - limits.zero
    if (limits.low, limits.high) != (0, 255):
        steps = put(at, "Clip", [steps, number(at, low), number(at, high)], dtype=F, like=steps)
    zero = constant(at, "zero", np.array(limits.zero, np.uint8))
    return put(at, "QuantizeLinear", [steps, number(at, 1), zero], dtype=U8, like=steps)


def dequantize(at: ir.Node, q: ir.Value, scale: float, zero: int) -> ir.Value:
    """``float32(q - zero) * scale`` of uint8."""
    zero_point = constant(at, "zero", np.array(zero, np.uint8))
    return put(at, "DequantizeLinear", [q, number(at, scale), zero_point], dtype=F, like=q)


def _scaled(at: ir.Node, product: Product) -> ir.Value:
    """``float32(acc) * m``."""
    node = product.nodes[0]
    acc = _sums(at, product)
    if product.bias.any():
        acc = put(at, "Add", [acc, constant(at, "bias", _along(node, product.bias))], dtype=I32, like=acc)
    real = put(at, "Cast", [acc], {"to": int(F)}, dtype=F, like=acc)
    m = constant(at, "multiplier", _along(node, product.m.astype(np.float32)))
    return put(at, "Mul", [real, m], dtype=F, like=acc)


def _sums(at: ir.Node, product: Product) -> ir.Value:
    node, w = product.nodes[0], product.w
    inputs: list[ir.Value | None] = [product.x.value, _right(at, product), _zero(at, product.x)]
    if isinstance(w, Quantized):
        inputs.append(_zero(at, w))
    attributes: dict[str, Attribute] = {}
    if node.op_type == "Conv":
        attributes = {name: value.value for name, value in node.attributes.items()}
    name = "ConvInteger" if node.op_type == "Conv" else "MatMulInteger"
    acc = put(at, name, inputs, attributes, dtype=I32, like=node.outputs[0])
    made = acc.producer()
    assert made is not None
    derive(made, product.nodes)
    does_arithmetic_of(made, [node])
    return acc


def _right(at: ir.Node, product: Product) -> ir.Value:
    node, w = product.nodes[0], product.w
    if isinstance(w, Quantized):
        return w.value
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0)
    return constant(at, "weights", np.ascontiguousarray(w.values.T) if turned else w.values)


def _zero(at: ir.Node, q: Quantized) -> ir.Value:
    return constant(at, "zero", np.array(q.zero, np.uint8))


def _along(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """One for each channel, so that it broadcasts against the result."""
    if array.size == 1:
        return array.reshape(())
    rank = len(node.outputs[0].shape or ())  # of all dimensions: layouts go through additions of equal rank
    return array.reshape(1, -1, *[1] * (rank - 2)) if node.op_type == "Conv" else array
