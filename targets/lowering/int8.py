"""Operators of 8-bit integers that a target puts in, by Relax's own operators, which layouts and fusion go through.

Conv32(x, w), MatMul32(a, b): products of int8, summed in int32. Quantize8(x; scale, zero, to), Dequantize8(q; scale,
zero): ``saturate(rint(x / scale) + zero)`` and ``(q - zero) * scale``, of one scale and zero point that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax

from graphopt.targets.lowering.support import CONV, DEQUANTIZE, MATMUL, QUANTIZE

Builder = relax.BlockBuilder
LAYOUTS = {1: ("NCW", "OIW"), 2: ("NCHW", "OIHW"), 3: ("NCDHW", "OIDHW")}


def _conv(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    rank = len(inputs[0].ty.shape) - 2
    operators: dict[int, Any] = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}
    layout, weights = LAYOUTS[rank]
    return operators[rank](
        *inputs,
        strides=list(node.attributes.get_ints("strides", [1] * rank)),
        padding=list(node.attributes.get_ints("pads", [0] * 2 * rank)),
        dilation=list(node.attributes.get_ints("dilations", [1] * rank)),
        groups=node.attributes.get_int("group", 1),
        data_layout=layout,
        kernel_layout=weights,
        out_dtype="int32",
    )


def _matmul(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    return relax.op.matmul(*inputs, out_dtype="int32")


def _quantize(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    scale, zero = _numbers(node)
    to = ir.DataType(node.attributes.get_int("to", 0)).numpy()
    limits = np.iinfo(to)
    steps = inputs[0] if scale == 1.0 else builder.normalize(relax.op.divide(inputs[0], _float(scale)))
    steps = builder.normalize(relax.op.round(steps))
    steps = builder.normalize(relax.op.maximum(steps, _float(int(limits.min) - zero)))
    steps = builder.normalize(relax.op.minimum(steps, _float(int(limits.max) - zero)))
    if zero:
        steps = builder.normalize(relax.op.add(steps, _float(zero)))
    return relax.op.astype(steps, to.name)


def _dequantize(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    scale, zero = _numbers(node)
    real = relax.op.astype(inputs[0], "float32")
    if zero:
        real = relax.op.subtract(builder.normalize(real), _float(zero))
    return real if scale == 1.0 else relax.op.multiply(builder.normalize(real), _float(scale))


def _numbers(node: ir.Node) -> tuple[float, int]:
    return node.attributes.get_float("scale", 1.0), node.attributes.get_int("zero", 0)


def _float(value: float) -> Any:
    return relax.const(float(np.float32(value)), "float32")


INT8: dict[tuple[str, str], Callable[[Builder, ir.Node, Sequence[Any]], Any]] = {
    CONV: _conv,
    MATMUL: _matmul,
    QUANTIZE: _quantize,
    DEQUANTIZE: _dequantize,
}
