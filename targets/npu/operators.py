"""Operators between DequantizeLinear and QuantizeLinear, and what the NPU does for each.

Each finder takes the node that yields the float value and the QuantizeLinear behind it, and returns the candidate or
raises `RefusedError` with the reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.npu.partition import RefusedError, find_region
from graphopt.targets.npu.program import Contract, Op, Pair, Quantum, Shape, Table, Tensor, View, Window, whole
from graphopt.targets.npu.shapes import pads_before, static_shape

Array = np.ndarray[Any, Any]
UNARY = frozenset(
    {"Abs", "Ceil", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log"}
    | {"Mish", "Neg", "PRelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign"}
    | {"Sqrt", "Tanh", "ThresholdedRelu", "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Identity"}
)
"""Operators whose results depend, element by element, on one value and on single constants."""
MOVES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
LONGEST_CHAIN = 24
Views = Sequence[View]


class Quantized(NamedTuple):
    """An 8-bit value, its scale and how its bytes are read."""

    value: ir.Value
    scale: np.float32
    quantum: Quantum


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """`nodes` compute the 8-bit (or raw) `result` of 8-bit `sources`; `ops` are what the NPU does for it."""

    anchor: ir.Node
    nodes: tuple[ir.Node, ...]
    sources: tuple[ir.Value, ...]
    result: ir.Value
    ops: Callable[[Views, View], list[Op]]
    macs: int = 0
    unit: Array | None = None  # of raw results: what one accumulator's unit is worth
    moved: bool = False  # the bytes stay what they are: another shape

    @property
    def name(self) -> str:
        """Of the anchor."""
        return str(self.anchor.name)


def shape_of(value: ir.Value) -> Shape:
    """(batch, channels, height, width) of a tensor: a matrix is one plane, a sequence has height 1."""
    shape = static_shape(value)
    if shape is None:
        raise RefusedError("its shape is open: fix the model's symbolic dimensions (--dim N=1)")
    match shape:
        case (n, c, h, w):
            return n, c, h, w
        case (n, c, w):
            return n, c, 1, w
        case _:
            return 1, 1, math.prod(shape[:-1]), shape[-1] if shape else 1


def dequantized(value: ir.Value | None) -> Quantized | None:
    """What `value` is DequantizeLinear of, if that is a computed 8-bit value with one scale."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    return None if constant_array(node.inputs[0]) is not None else _quantized(node, node.inputs[0])


def quantized(node: ir.Node) -> Quantized | None:
    """What a QuantizeLinear yields, if that is 8 bits with one scale."""
    return _quantized(node, node.outputs[0]) if node.domain == "" and node.op_type == "QuantizeLinear" else None


def _quantized(node: ir.Node, value: ir.Value) -> Quantized | None:
    scale = constant_array(node.inputs[1])
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if value.dtype not in (ir.DataType.INT8, ir.DataType.UINT8) or scale is None or zero is None:
        return None
    if scale.size != 1 or zero.size != 1 or scale.dtype != np.float32 or not 0 < float(scale.reshape(-1)[0]) < np.inf:
        return None
    signed = value.dtype == ir.DataType.INT8
    low, high = (-128, 127) if signed else (0, 255)
    return Quantized(value, np.float32(scale.reshape(-1)[0]), Quantum(signed, int(zero.reshape(-1)[0]), low, high))


def contraction(node: ir.Node) -> Candidate:
    """Conv, Gemm or MatMul with what `partition` finds behind it."""
    region = find_region(node)
    g = region.layer.geometry
    x_shape = (1, 1, g.iw, g.cin) if g.channels_last else (g.batch, g.groups * g.cin, g.ih, g.iw)
    y_shape = (1, 1, g.ow, g.oc) if g.channels_last else (g.batch, g.groups * g.oc, g.oh, g.ow)

    def ops(sources: Views, result: View) -> list[Op]:
        return [Contract(region.layer, reshaped(sources[0], x_shape), reshaped(result, y_shape))]

    raw = region.layer.requantise.raw
    if raw and any(use.node.op_type in UNARY | {"Sum"} for use in region.result.uses()):
        raise RefusedError(
            "float operators follow, which the CPU's kernel takes along: quantize its result to have it on the NPU"
        )
    unit = region.layer.requantise.multiplier if raw else None
    return Candidate(node, region.nodes, (region.source,), region.result, ops, g.macs, unit)


def reshaped(view: View, shape: Shape) -> View:
    """The same bytes in another shape."""
    return view if view.shape == shape else View(view.tensor, shape, view.first)


def find(node: ir.Node, tables: dict[ir.Value, tuple[ir.Value, tuple[ir.Node, ...]]]) -> Candidate:
    """The candidate that ends in the QuantizeLinear `node`.

    `tables`: for each value that is a function of one other 8-bit value, that value and the nodes between; what is
    found is added.
    """
    result = quantized(node)
    value = node.inputs[0]
    if result is None or value is None:
        raise RefusedError("its result is not quantized to 8 bits with one scale")
    body, first = _activation(value)
    match body.op_type:
        case "Add" | "Sum" | "Mul" if _two_sources(body):
            try:
                return _table(body, node, result, tables)
            except RefusedError:
                return _pair(body, first, node, result)
        case "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" | "ReduceMean":
            return _window(body, first, node, result)
        case "Concat":
            return _concat(body, first, node, result)
        case "Resize":
            return _resize(body, first, node, result)
        case op if (op in MOVES and len(body.inputs) > 1) or op in ("Flatten", "Squeeze", "Unsqueeze"):
            return _move(body, first, node, result)
        case _:
            return _table(_producer(value), node, result, tables)


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None:
        raise RefusedError("it quantizes an input of the model")
    return node


def _activation(value: ir.Value) -> tuple[ir.Node, tuple[ir.Node, ...]]:
    """The node before trailing Relu and Clip, and those."""
    node, behind = _producer(value), list[ir.Node]()
    while node.op_type in ("Relu", "Clip"):
        source = node.inputs[0]
        before = None if source is None else source.producer()
        if source is None or before is None or len(source.uses()) != 1:
            break
        if before.op_type in ("DequantizeLinear", "Conv", "Gemm", "MatMul"):
            break
        behind.insert(0, node)
        node = before
    return node, tuple(behind)


def _clamped(behind: Sequence[ir.Node], result: Quantized) -> Quantum:
    """The range that Relu and Clip leave of 8 bits."""
    q = result.quantum
    low, high = q.low, q.high
    for node in behind:
        bounds = [0.0, np.inf] if node.op_type == "Relu" else [-np.inf, np.inf]
        for index, given in enumerate(node.inputs[1:3]):
            array = constant_array(given) if given is not None else None
            if given is not None and array is None:
                raise RefusedError(f"a bound of {node.name} is computed at run time")
            bounds[index] = bounds[index] if array is None else float(array.reshape(-1)[0])
        with np.errstate(over="ignore"):
            least, most = (np.clip(np.rint(np.float32(b) / result.scale), -1024, 1024) + q.zero for b in bounds)
        low, high = int(max(low, min(least, q.high))), int(min(high, max(most, q.low)))
    return dataclasses.replace(q, low=min(low, high), high=high)


def _sources(node: ir.Node) -> list[Quantized]:
    found = [dequantized(value) for value in node.inputs]
    known = [q for q in found if q is not None]
    if len(known) < len(found):
        raise RefusedError("an operand is not quantized to 8 bits with one scale")
    return known


def _two_sources(node: ir.Node) -> bool:
    return len(node.inputs) == 2 and all(dequantized(value) is not None for value in node.inputs)


def _pair(node: ir.Node, behind: tuple[ir.Node, ...], last: ir.Node, result: Quantized) -> Candidate:
    a, b = _sources(node)
    shape = shape_of(result.value)
    if shape_of(a.value) != shape:
        a, b = b, a
    b_shape = shape_of(b.value)
    if shape_of(a.value) != shape or (b_shape != shape and b_shape != (*shape[:2], 1, 1)):
        raise RefusedError("its operands are broadcast along other axes than height and width")
    op = "Mul" if node.op_type == "Mul" else "Add"
    bounds = _clamped(behind, result)
    if op == "Add":
        scales = np.float32(a.scale / result.scale), np.float32(b.scale / result.scale)
    else:
        scales = a.scale, np.float32(b.scale / result.scale)

    def ops(sources: Views, out: View) -> list[Op]:
        return [
            Pair(str(node.name), op, sources[0], sources[1], out, a.quantum, b.quantum, bounds, scales[0], scales[1])
        ]

    return Candidate(node, (node, *behind, last), (a.value, b.value), result.value, ops)


def _table(
    body: ir.Node,
    last: ir.Node,
    result: Quantized,
    tables: dict[ir.Value, tuple[ir.Value, tuple[ir.Node, ...]]],
) -> Candidate:
    """A function of one 8-bit value: what it yields for all 256, worked out by onnxruntime from the very nodes."""
    from graphopt.targets.llvm.plan.evaluate import evaluate

    nodes, starts = _closure(last)
    sources = {q.value: q for q in starts.values()}
    while len(sources) > 1:
        deeper = next((v for v in sources if v in tables), None)
        if deeper is None:
            raise RefusedError("it is computed from more than one 8-bit value")
        more, again = _closure(_producer(deeper))
        between = [_producer(v) for v in starts if starts[v].value is deeper]
        nodes = (*(n for n in (*more, *between) if n not in nodes), *nodes)
        starts = {v: q for v, q in starts.items() if q.value is not deeper} | again
        sources = {q.value: q for q in starts.values()}
    (source,) = sources.values()
    if len(nodes) > LONGEST_CHAIN or static_shape(source.value) != static_shape(result.value):
        raise RefusedError("no function of one element of an 8-bit value of its shape")
    tables[result.value] = source.value, nodes
    anchor = body

    def ops(views: Views, out: View) -> list[Op]:
        dtype = np.int8 if source.quantum.signed else np.uint8
        steps = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32) - np.float32(source.quantum.zero)
        rank = len(source.value.shape or ())
        real = (steps * source.scale).reshape([1] * (rank - 1) + [256])
        (values,) = evaluate(nodes, dict.fromkeys(starts, real), [result.value])
        table = np.ascontiguousarray(values.reshape(-1)).view(np.uint8)
        return [Table(str(anchor.name), anchor.op_type, views[0], out, table)]

    return Candidate(anchor, nodes, (source.value,), result.value, ops)


def _closure(last: ir.Node) -> tuple[tuple[ir.Node, ...], dict[ir.Value, Quantized]]:
    """The elementwise nodes back from `last` to dequantized values, in order, and those values."""
    order: list[ir.Node] = []
    starts: dict[ir.Value, Quantized] = {}

    def visit(node: ir.Node) -> None:
        if node in order:
            return
        if len(order) > LONGEST_CHAIN or node.domain != "":
            raise RefusedError("the NPU has no such operator")
        if node is not last and node.op_type not in UNARY:
            raise RefusedError("the NPU has no such operator")
        for value in node.inputs[: 1 if node is last else None]:
            if value is None:
                continue
            q = dequantized(value)
            array = constant_array(value)
            if q is not None:
                starts[value] = q
            elif array is None:
                before = value.producer()
                if before is None:
                    raise RefusedError("an operand is not quantized to 8 bits with one scale")
                visit(before)
            elif array.size != 1:
                raise RefusedError("an operand is a constant with more than one element")
        order.append(node)

    visit(last)
    if not starts or len(order) < 2:
        raise RefusedError("the NPU has no such operator")
    return tuple(order), starts


def _window(node: ir.Node, behind: tuple[ir.Node, ...], last: ir.Node, result: Quantized) -> Candidate:
    (x,) = _sources(node) if node.op_type != "ReduceMean" else _sources_of_first(node)
    shape = static_shape(node.inputs[0])
    if shape is None or len(shape) != 4 or len(node.outputs) > 1:
        raise RefusedError("its input is no image of fixed shape, or it has two results")
    kernel, stride, pad = _geometry(node, shape)
    maximum = node.op_type in ("MaxPool", "GlobalMaxPool")
    bounds = _clamped(behind, result)
    name = str(node.name)
    if maximum and (x.scale, x.quantum) != (result.scale, bounds):
        if behind:
            raise RefusedError("an activation stands behind a maximum")
        table = requantised(x, result)

        def both(sources: Views, out: View) -> list[Op]:
            between = whole(Tensor(f"{name}_maximum", out.shape))
            first = Window(
                name, node.op_type, sources[0], between, kernel, stride, pad, x.quantum, x.quantum, maximum=True
            )
            return [first, Table(name, node.op_type, between, out, table)]

        return Candidate(node, (node, last), (x.value,), result.value, both)
    scale = np.float32(x.scale / result.scale)

    def ops(sources: Views, out: View) -> list[Op]:
        return [Window(name, node.op_type, sources[0], out, kernel, stride, pad, x.quantum, bounds, maximum, scale)]

    return Candidate(node, (node, *behind, last), (x.value,), result.value, ops)


def _sources_of_first(node: ir.Node) -> list[Quantized]:
    q = dequantized(node.inputs[0])
    if q is None:
        raise RefusedError("an operand is not quantized to 8 bits with one scale")
    axes = constant_array(node.inputs[1]) if len(node.inputs) > 1 else np.array(node.attributes.get_ints("axes", []))
    rank = len(node.inputs[0].shape or ()) if node.inputs[0] is not None else 0
    kept = node.attributes.get_int("keepdims", 1)
    if axes is None or rank != 4 or not kept or sorted(int(a) % 4 for a in axes.reshape(-1)) != [2, 3]:
        raise RefusedError("it reduces other axes than height and width")
    return [q]


def _geometry(node: ir.Node, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride and padding before."""
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean"):
        return (shape[2], shape[3]), (1, 1), (0, 0)
    kernel = tuple(node.attributes.get_ints("kernel_shape", []))
    stride = tuple(node.attributes.get_ints("strides", [1, 1]))
    y = static_shape(node.outputs[0])
    if y is None or len(kernel) != 2 or set(node.attributes.get_ints("dilations", [1, 1])) != {1}:
        raise RefusedError("its window is dilated, or not of two dimensions")
    pads = pads_before(node, shape[2:], y[2:], kernel, stride, (1, 1))
    if node.op_type == "AveragePool" and not node.attributes.get_int("count_include_pad", 0):
        reach = [(out - 1) * s + k for out, s, k in zip(y[2:], stride, kernel, strict=True)]
        if any(pads) or any(r > size for r, size in zip(reach, shape[2:], strict=True)):
            raise RefusedError("its means leave padding out: the vector unit divides by one number")
    return (kernel[0], kernel[1]), (stride[0], stride[1]), (pads[0], pads[1])


def requantised(x: Quantized, y: Quantized) -> Array:
    """The table from the bytes of `x` to those of `y`: QuantizeLinear of DequantizeLinear in float32."""
    dtype = np.int8 if x.quantum.signed else np.uint8
    steps = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32) - np.float32(x.quantum.zero)
    rounded = np.rint(steps * x.scale / y.scale) + np.float32(y.quantum.zero)
    out = np.clip(rounded, y.quantum.low, y.quantum.high)
    return out.astype(np.int8 if y.quantum.signed else np.uint8).view(np.uint8)


def _concat(node: ir.Node, behind: tuple[ir.Node, ...], last: ir.Node, result: Quantized) -> Candidate:
    sources = _sources(node)
    shape = static_shape(result.value)
    if behind or shape is None or len(shape) != 4 or node.attributes.get_int("axis", 1) % 4 != 1:
        raise RefusedError("it joins other things than the channels of images")
    shapes = [shape_of(q.value) for q in sources]

    def ops(views: Views, out: View) -> list[Op]:
        found: list[Op] = []
        first = 0
        for view, q, part in zip(views, sources, shapes, strict=True):
            target = View(out.tensor, part, out.first + first)
            found.append(Table(str(node.name), "Concat", view, target, requantised(q, result)))
            first += part[1]
        return found

    return Candidate(node, (node, last), tuple(q.value for q in sources), result.value, ops)


def _resize(node: ir.Node, behind: tuple[ir.Node, ...], last: ir.Node, result: Quantized) -> Candidate:
    x = dequantized(node.inputs[0])
    if x is None or behind:
        raise RefusedError("an operand is not quantized to 8 bits with one scale")
    (n, c, h, w), (yn, yc, yh, yw) = shape_of(x.value), shape_of(result.value)
    mode = node.attributes.get_string("mode", "nearest")
    where = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounds = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    exact = (where, rounds) in {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}
    if mode != "nearest" or not exact or (n, c) != (yn, yc) or yh % h or yw % w:
        raise RefusedError("the NPU only repeats rows and columns: nearest, a whole number of times")
    repeat = yh // h, yw // w

    def ops(views: Views, out: View) -> list[Op]:
        return [Table(str(node.name), "Resize", views[0], out, requantised(x, result), repeat)]

    return Candidate(node, (node, last), (x.value,), result.value, ops)


def _move(node: ir.Node, behind: tuple[ir.Node, ...], last: ir.Node, result: Quantized) -> Candidate:
    """Reshape and its like: the same bytes, or a table where the scale changes."""
    x = dequantized(node.inputs[0])
    if x is None or behind or static_shape(result.value) is None or static_shape(x.value) is None:
        raise RefusedError("an operand is not quantized to 8 bits with one scale, or its shape is open")
    same = (x.scale, x.quantum) == (result.scale, result.quantum)
    shape = shape_of(x.value)

    def ops(views: Views, out: View) -> list[Op]:
        return [Table(str(node.name), node.op_type, views[0], reshaped(out, shape), requantised(x, result))]

    return Candidate(node, (node, last), (x.value,), result.value, ops, moved=same)
