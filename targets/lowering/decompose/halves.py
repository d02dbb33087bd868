"""Sums of 16-bit floats are taken in float32, as everywhere else: TVM would add them up in 16 bits."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.lowering.nodes import constant, put, take_place

D = ir.DataType
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
SUMMING = (
    PRODUCTS
    | {"Softmax", "LogSoftmax", "ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2"}
    | {"ReduceSumSquare", "ReduceLogSumExp", "LayerNormalization", "InstanceNormalization", "Einsum", "CumSum"}
    | {"AveragePool", "GlobalAveragePool", "LpPool", "RMSNormalization", "GroupNormalization", "LRN"}
)
HALVES = (D.FLOAT16, D.BFLOAT16)


def sum_in_float32(model: ir.Model, operators: frozenset[str] = SUMMING) -> None:
    """Put casts around every one of `operators` in the main graph that sums 16-bit floats, in place."""
    for node in list(model.graph):
        y = node.outputs[0]
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            continue
        if node.domain != "" or node.op_type not in operators or y.dtype is None or y.dtype not in HALVES:
            continue
        inputs = [
            _wide(node, value) if value is not None and value.dtype == y.dtype else value for value in node.inputs
        ]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        result = put(node, node.op_type, inputs, attributes, dtype=D.FLOAT, like=y)
        take_place(node, put(node, "Cast", [result], {"to": int(y.dtype)}, dtype=y.dtype, like=y))
        model.graph.remove(node, safe=True)


def _wide(at: ir.Node, value: ir.Value) -> ir.Value:
    array = constant_array(value)
    if array is not None:
        return constant(at, "wide", array.astype("float32"))
    return put(at, "Cast", [value], {"to": int(D.FLOAT)}, dtype=D.FLOAT, like=value)
