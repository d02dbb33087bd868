"""Operators that keep channels-last values channels-last: pooling, concatenation, elementwise."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph import add_constant, constant_array, fresh_name
from graphopt.targets.llvm.kernels import concat, pool
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.plan.convs import window
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Image, Twins, image

UNARY = frozenset(
    {"Abs", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"}
    | {"Log", "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh"}
)
BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu", "Sum"})


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute `node` channels-last if that fits it; says whether it did."""
    if node.domain != "" or len(node.outputs) != 1 or image(node.outputs[0]) is None:
        return False
    if node.op_type in ("MaxPool", "AveragePool"):
        return _pool(node, kernels, twins)
    if node.op_type == "GlobalAveragePool":
        return _global_average(node, kernels, twins)
    if not any(twins.known(v) for v in node.inputs):
        return False
    if node.op_type == "Concat" and node.attributes.get_int("axis", 0) in (1, -3):
        return _concat(node, kernels, twins)
    if node.op_type in UNARY or node.op_type in BINARY:
        return _elementwise(node, twins)
    return False


def _pool(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    shape = node.attributes.get_ints("kernel_shape", [])
    c = window(node, (shape[0], shape[1])) if len(shape) == 2 else None
    if c is None or node.attributes.get_int("ceil_mode", 0):
        return False
    _call_pool(node, c, node.attributes.get_int("count_include_pad", 0) == 1, kernels, twins)
    return True


def _global_average(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    x = image(node.inputs[0])
    if x is None or not twins.known(node.inputs[0]):
        return False
    c = Conv(x.batch, x.h, x.w, x.c, x.c, (x.h, x.w))
    _call_pool(node, c, False, kernels, twins)
    return True


def _call_pool(node: ir.Node, c: Conv, count_padding: bool, kernels: Kernels, twins: Twins) -> None:
    maximum = node.op_type == "MaxPool"
    key = ("pool", c, maximum, count_padding)
    symbol = kernels.symbol(
        key, "pool", lambda s: pool.make(c, kernels.isa, maximum, count_padding, kernels.parallel, s)
    )
    x, shape = node.inputs[0], image(node.outputs[0])
    assert x is not None
    assert shape is not None
    called = call(symbol, [twins.last(x)], shape.last, node)
    twins.insert(called)
    twins.set(node.outputs[0], called.outputs[0])


def _concat(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    out, shapes = image(node.outputs[0]), [image(v) for v in node.inputs]
    known: list[Image] = [shape for shape in shapes if shape is not None]
    if out is None or len(known) != len(shapes):
        return False
    rows, channels = (out.batch, out.h, out.w), [shape.c for shape in known]
    symbol = kernels.symbol(
        ("concat", rows, tuple(channels)), "concat",
        lambda s: concat.make(rows, channels, kernels.isa, kernels.parallel, s),
    )  # fmt: skip
    called = call(symbol, [twins.last(v) for v in node.inputs if v is not None], out.last, node)
    twins.insert(called)
    twins.set(node.outputs[0], called.outputs[0])
    return True


def _elementwise(node: ir.Node, twins: Twins) -> bool:
    """Move the node to the twins; constants that broadcast along channels are turned with them."""
    inputs: list[ir.Value | None] = []
    for index, value in enumerate(node.inputs):
        if value is None or (index > 0 and node.op_type in UNARY):
            inputs.append(value)
        elif image(value) is not None and constant_array(value) is None:
            inputs.append(twins.last(value))
        else:
            turned = _turned_constant(value, twins.graph)
            if turned is None:
                return False
            inputs.append(turned)
    shape = image(node.outputs[0])
    assert shape is not None
    hint = f"{node.outputs[0].name}_last"
    output = ir.val(fresh_name(twins.graph, hint), ir.DataType.FLOAT, ir.Shape(shape.last))
    name = fresh_name(twins.graph, f"{node.name}_last")
    twins.insert(ir.node(node.op_type, inputs, dict(node.attributes), outputs=[output], name=name))
    twins.set(node.outputs[0], output)
    return True


def _turned_constant(value: ir.Value, graph: ir.Graph) -> ir.Value | None:
    """A constant operand with its channels last; None when it is not constant."""
    array = constant_array(value)
    if array is None or array.ndim > 4:
        return None
    if array.size == 1 and array.ndim <= 1:
        return value
    full = array.reshape((1,) * (4 - array.ndim) + array.shape)
    return add_constant(graph, f"{value.name}_last", full.transpose(0, 2, 3, 1))
