"""Operators between DequantizeLinear and QuantizeLinear, and what the NPU does for each.

Each finder takes the node that yields the float value and the QuantizeLinear behind it, and returns the candidate or
raises `RefusedError` with the reason.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.targets.npu.candidate import (
    Candidate,
    Quantized,
    Views,
    clamped,
    dequantized,
    producer_of,
    quantized,
    requantised,
    reshaped,
    shape_of,
    sources_of,
)
from graphopt.targets.npu.partition import RefusedError, find_region
from graphopt.targets.npu.pools import window
from graphopt.targets.npu.program import Contract, Op, Pair, Table, View
from graphopt.targets.npu.shapes import static_shape
from graphopt.targets.npu.tables import UNARY, Tables, table

MOVES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity"})


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


def find(node: ir.Node, tables: Tables) -> Candidate:
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
                return table(body, node, result, tables)
            except RefusedError:
                return _pair(body, first, node, result)
        case "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" | "ReduceMean":
            return window(body, first, node, result)
        case "Concat":
            return _concat(body, first, node, result)
        case "Resize":
            return _resize(body, first, node, result)
        case op if (op in MOVES and len(body.inputs) > 1) or op in ("Flatten", "Squeeze", "Unsqueeze"):
            return _move(body, first, node, result)
        case _:
            return table(producer_of(value), node, result, tables)


def _activation(value: ir.Value) -> tuple[ir.Node, tuple[ir.Node, ...]]:
    """The node before trailing Relu and Clip, and those."""
    node, behind = producer_of(value), list[ir.Node]()
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


def _two_sources(node: ir.Node) -> bool:
    return len(node.inputs) == 2 and all(dequantized(value) is not None for value in node.inputs)


def _pair(node: ir.Node, behind: tuple[ir.Node, ...], last: ir.Node, result: Quantized) -> Candidate:
    a, b = sources_of(node)
    shape = shape_of(result.value)
    if shape_of(a.value) != shape:
        a, b = b, a
    b_shape = shape_of(b.value)
    if shape_of(a.value) != shape or (b_shape != shape and b_shape != (*shape[:2], 1, 1)):
        raise RefusedError("its operands are broadcast along other axes than height and width")
    op = "Mul" if node.op_type == "Mul" else "Add"
    bounds = clamped(behind, result)
    if op == "Add":
        scales = np.float32(a.scale / result.scale), np.float32(b.scale / result.scale)
    else:
        scales = a.scale, np.float32(b.scale / result.scale)

    def ops(sources: Views, out: View) -> list[Op]:
        return [
            Pair(str(node.name), op, sources[0], sources[1], out, a.quantum, b.quantum, bounds, scales[0], scales[1])
        ]

    return Candidate(node, (node, *behind, last), (a.value, b.value), result.value, ops)


def _concat(node: ir.Node, behind: tuple[ir.Node, ...], last: ir.Node, result: Quantized) -> Candidate:
    sources = sources_of(node)
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
