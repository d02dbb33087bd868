"""Functions of one 8-bit value, as tables of 256 bytes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.npu.candidate import Candidate, Quantized, Views, dequantized, producer_of
from graphopt.targets.npu.partition import RefusedError
from graphopt.targets.npu.program import Op, Table, View
from graphopt.targets.npu.shapes import static_shape

UNARY = frozenset(
    {"Abs", "Ceil", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log"}
    | {"Mish", "Neg", "PRelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign"}
    | {"Sqrt", "Tanh", "ThresholdedRelu", "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Identity"}
)
"""Operators whose results depend, element by element, on one value and on single constants."""
LONGEST_CHAIN = 24
Tables = dict[ir.Value, tuple[ir.Value, tuple[ir.Node, ...]]]
"""For each value that is a function of one other 8-bit value, that value and the nodes between."""


def table(
    body: ir.Node,
    last: ir.Node,
    result: Quantized,
    tables: Tables,
) -> Candidate:
    """A function of one 8-bit value: what it yields for all 256, worked out by onnxruntime from the very nodes."""
    from graphopt.targets.llvm.plan.evaluate import evaluate

    nodes, starts = _closure(last)
    sources = {q.value: q for q in starts.values()}
    while len(sources) > 1:
        deeper = next((v for v in sources if v in tables), None)
        if deeper is None:
            raise RefusedError("it is computed from more than one 8-bit value")
        more, again = _closure(producer_of(deeper))
        between = [producer_of(v) for v in starts if starts[v].value is deeper]
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
        entries = np.ascontiguousarray(values.reshape(-1)).view(np.uint8)
        return [Table(str(anchor.name), anchor.op_type, views[0], out, entries)]

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
