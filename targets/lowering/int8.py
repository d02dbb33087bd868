"""Operators of 8-bit integers that a target puts in, by Relax's own, which layouts and fusion go through.

Conv32(x, w) and MatMul32(a, b): products of int8, summed in int32. Narrow(x; to): whole float32 numbers in an integer
type that has them (ONNX's Cast also has others wrap around). AddBorder(sums, table): a convolution's sums and what is
added to each by how much of its window lies outside the image, [1, channels, ways of rows, ways of columns].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from tvm import relax

from graphopt.targets.lowering.support import BORDER, CONV, MATMUL, NARROW

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


def _border(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    """A form that layouts go through; the target puts in what it means."""
    size = relax.ShapeExpr(list(inputs[0].ty.shape)[2:])
    spread = relax.op.image.resize2d(inputs[1], size, layout="NCHW", method="nearest_neighbor")
    return relax.op.add(inputs[0], builder.normalize(spread))


def _narrow(builder: Builder, node: ir.Node, inputs: Sequence[Any]) -> Any:
    return relax.op.astype(inputs[0], ir.DataType(node.attributes.get_int("to", 0)).numpy().name)


INT8: dict[tuple[str, str], Callable[[Builder, ir.Node, Sequence[Any]], Any]] = {
    CONV: _conv,
    MATMUL: _matmul,
    BORDER: _border,
    NARROW: _narrow,
}
