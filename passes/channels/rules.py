"""What each operator does with the indices along the axes of its operands. One not listed here is opaque."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphopt.graph.views import reads
from graphopt.passes.channels.axes import Axes, Dims, Opaque
from graphopt.passes.channels.channelwise import (
    along,
    batch_norm,
    elementwise,
    from_axis,
    image,
    instance_norm,
    pad,
    quantize,
    reduce,
    resize,
    same,
)
from graphopt.passes.channels.moves import concat, gather, reshape, shape, slice_, split, transpose
from graphopt.passes.channels.operands import said
from graphopt.passes.channels.products import conv, conv_transpose, gemm, matmul

Rule = Callable[[Axes, ir.Node], Dims]


def follow(graph: ir.Graph) -> Axes:
    """The axes of all values of `graph`. What its inputs and outputs look like stays."""
    axes = Axes()
    for node in graph:
        _follow(axes, node)
    axes.fix_all(graph.outputs, "it is an output of the graph")
    return axes


def _follow(axes: Axes, node: ir.Node) -> None:
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        return
    try:
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            raise Opaque("nothing is known about this operator's channels")
        axes.of[node.outputs[0]] = rule(axes, node)
        if any(value.name and (value.uses() or value.is_graph_output()) for value in _others(node)):
            raise Opaque("it has a second result")
    except Opaque as why:
        axes.fix_all([*reads(node), *node.outputs], f"{said(node)}: {why}")
        for value in node.outputs:
            if value.shape is not None:
                axes.of[value] = [None] * len(value.shape)


def _others(node: ir.Node) -> list[ir.Value]:
    return [] if node.op_type == "Split" else list(node.outputs[1:])


_SAME = (
    "Abs", "Acos", "Asin", "Atan", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp",
    "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg",
    "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt",
    "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_ELEMENTWISE = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod",
    "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_REDUCE = ("ArgMax", "ArgMin", "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **{name if name.startswith("Arg") else f"Reduce{name}": reduce for name in _REDUCE},
    **dict.fromkeys(_POOLS, image),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LpNormalization", "Hardmax"), along),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), from_axis),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), reshape),
    "BatchNormalization": batch_norm,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gather": gather,
    "Gemm": gemm,
    "InstanceNormalization": instance_norm,
    "MatMul": matmul,
    "Pad": pad,
    "Resize": resize,
    "Shape": shape,
    "Slice": slice_,
    "Split": split,
    "Transpose": transpose,
    "Upsample": resize,
}
