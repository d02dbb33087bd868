"""Operators that keep channels-last values channels-last: pooling, concatenation, elementwise."""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from graphopt.graph import add_constant, constant_array, fresh_name
from graphopt.targets.llvm.kernels import lrn, pool
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.grid import Grid
from graphopt.targets.llvm.plan import slices
from graphopt.targets.llvm.plan.convs import window
from graphopt.targets.llvm.plan.integer.region import dequantized
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, constant_to_last, image, is_turned
from graphopt.targets.llvm.plan.sources import sources

UNARY = frozenset(
    {"Abs", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"}
    | {"Log", "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh"}
)
BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu"})
POOLS = frozenset({"MaxPool", "AveragePool"})
KEEPING = (
    UNARY | BINARY | {"Concat", "Split", "Slice", "Resize", "GlobalAveragePool", "GlobalMaxPool", "LRN", "Pad"}
    | {"Softmax", "LogSoftmax", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "DequantizeLinear"}
)  # fmt: skip
"""Operators whose results are channels-last if their inputs are (mostly: shapes have a say)."""
MOVING = frozenset({"Concat", "Split", "Slice", "Resize", "MaxPool"})
"""Those of them that take 8-bit values as well."""


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute `node` channels-last if that fits it; says whether it did."""
    if node.domain != "" or not node.outputs or image(node.outputs[0]) is None:
        return False
    if node.op_type == "DequantizeLinear":
        return _dequantize(node, twins)
    if node.outputs[0].dtype != ir.DataType.FLOAT and node.op_type not in MOVING:
        return False
    if node.op_type in POOLS:
        return _pool(node, kernels, twins)
    if node.op_type == "GlobalAveragePool":
        return _global_average(node, kernels, twins)
    if not any(twins.known(v) for v in node.inputs) and not slices.joined(node):
        return False
    rank = len(node.outputs[0].shape or ())
    if node.op_type in ("Concat", "Split") and node.attributes.get_int("axis", 0) in (1, 1 - rank):
        return _concat(node, twins) if node.op_type == "Concat" else _split(node, twins)
    if node.op_type == "Slice":
        return slices.emit(node, twins)
    if node.op_type == "Resize":
        return _resize(node, twins)
    if node.op_type == "LRN":
        return _lrn(node, kernels, twins)
    if node.op_type in UNARY or node.op_type in BINARY:
        return _elementwise(node, twins)
    return False


def _dequantize(node: ir.Node, twins: Twins) -> bool:
    """Note what the bytes stand for: whoever reads them dequantizes them on the way."""
    q = dequantized(node.outputs[0])
    if q is None or not twins.known(q.value):
        return False
    grid = Grid(float(q.scale), q.zero)
    twins.set_parts(node.outputs[0], [dataclasses.replace(part, grid=grid) for part in twins.parts(q.value)])
    return True


def _pool(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    c = window(node, node.attributes.get_ints("kernel_shape", []))
    if c is None or len(node.outputs) > 1 or node.attributes.get_int("ceil_mode", 0):
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
    x, shape = node.inputs[0], image(node.outputs[0])
    assert x is not None
    assert shape is not None
    where, inputs = sources(x, twins)
    dtype = "float32" if node.outputs[0].dtype == ir.DataType.FLOAT else "uint8"
    key = ("pool", c, maximum, count_padding, where, dtype)
    parallel = kernels.threads((c.n, c.oh, c.ow), c.co * math.prod(c.kernel))
    symbol = kernels.symbol(
        key, "pool", lambda s: pool.make(c, kernels.isa, maximum, count_padding, parallel, s, where, dtype)
    )
    called = call(symbol, inputs, [shape.n, c.oh, c.ow, c.co], node)
    twins.insert(called)
    twins.set(node.outputs[0], twins.shaped(called.outputs[0], shape.last, node.outputs[0]))


def _concat(node: ir.Node, twins: Twins) -> bool:
    inputs = [v for v in node.inputs if v is not None]
    if any(image(v) is None or is_turned(v) != is_turned(node.outputs[0]) for v in inputs):
        return False
    twins.set_parts(node.outputs[0], [part for v in inputs for part in twins.parts(v)])
    return True


def _split(node: ir.Node, twins: Twins) -> bool:
    """Split along the channels."""
    start, source = 0, node.inputs[0]
    assert source is not None
    for output in node.outputs:
        shape = image(output)
        if shape is None:
            return False
    for output in node.outputs:
        shape = image(output)
        assert shape is not None
        twins.set_parts(output, slices.cut(twins.parts(source), start, start + shape.c))
        start += shape.c
    return True


def _lrn(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    shape, source = image(node.outputs[0]), node.inputs[0]
    assert shape is not None
    assert source is not None
    numbers = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}
    alpha, beta, bias = (node.attributes.get_float(name, default) for name, default in numbers.items())
    rows = (shape.batch, shape.h, shape.w)
    p = lrn.Lrn(rows, shape.c, node.attributes.get_int("size", 1), alpha, beta, bias)
    if beta not in lrn.BETAS or p.size % 2 == 0:  # onnxruntime has no even windows to compare with
        return False
    symbol = kernels.symbol(p, "lrn", lambda s: lrn.make(p, kernels.isa, kernels.parallel, s))
    called = call(symbol, [twins.last(source)], shape.last, node)
    twins.insert(called)
    twins.set(node.outputs[0], called.outputs[0])
    return True


def _resize(node: ir.Node, twins: Twins) -> bool:
    """Nearest-neighbour upsampling by whole factors that repeats each position."""
    source, x, y = node.inputs[0], image(node.inputs[0]), image(node.outputs[0])
    if source is None or x is None or y is None or node.attributes.get_string("mode", "nearest") != "nearest":
        return False
    if x.c != y.c or y.h % x.h or y.w % x.w or len(source.shape or ()) != 4 or is_turned(source):
        return False
    where = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    repeats = (where == "asymmetric" and rounding == "floor") or (
        where in ("half_pixel", "half_pixel_symmetric") and rounding.startswith("round_prefer")
    )
    if not repeats:
        return False
    down, across = y.h // x.h, y.w // x.w
    parts = [dataclasses.replace(p, scale=(p.scale[0] * down, p.scale[1] * across)) for p in twins.parts(source)]
    twins.set_parts(node.outputs[0], parts)
    return True


def _elementwise(node: ir.Node, twins: Twins) -> bool:
    """Move the node to the twins; constants that broadcast along channels are turned with them."""
    inputs: list[ir.Value | None] = []
    result = node.outputs[0]
    for index, value in enumerate(node.inputs):
        array = constant_array(value)
        if value is None or (index > 0 and node.op_type in UNARY) or (array is not None and array.size == 1):
            inputs.append(value)
        elif array is not None and array.ndim <= len(result.shape or ()):
            inputs.append(add_constant(twins.graph, f"{value.name}_last", constant_to_last(array, result)))
        elif array is None and _fits(value, result):
            inputs.append(twins.last(value))
        else:
            return False
    shape = image(result)
    assert shape is not None
    hint = f"{result.name}_last"
    output = ir.val(fresh_name(twins.graph, hint), ir.DataType.FLOAT, ir.Shape(shape.last))
    name = fresh_name(twins.graph, f"{node.name}_last")
    twins.insert(ir.node(node.op_type, inputs, dict(node.attributes), outputs=[output], name=name))
    twins.set(result, output)
    return True


def _fits(value: ir.Value, result: ir.Value) -> bool:
    """Whether the twin of `value` broadcasts against that of `result` as the values do."""
    same_rank = len(value.shape or ()) == len(result.shape or ())
    return image(value) is not None and same_rank and (is_turned(result) or not is_turned(value))
