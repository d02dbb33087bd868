"""Dynamic quantization: activations become uint8 at run time, by the range they have there; no calibration."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.graph import add_constant, constant_array, remove_unused
from graphopt.passes.quant.arithmetic import quantize_weight
from graphopt.passes.quant.insert import add_node, replace_node
from graphopt.passes.quant.spec import QuantSpec, weight_bits_for
from graphopt.passes.weights import Weight, find_weight, is_weighted, matches, output_axis, weight_array

Array = np.ndarray[Any, Any]
_DYNAMIC = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Computes Conv, Gemm and MatMul with constant weights in integers, their inputs quantized as they come.

    weight_bits: as in `InsertQdq`.
    include, exclude: node names or operators, ``*`` allowed.

    ``y = float(MatMulInteger(q, W_q)) * (s_x * s_w) + bias``, where DynamicQuantizeLinear makes ``q`` (uint8), ``s_x``
    and the zero point once for all readers of x, and W_q is symmetric int8 with a scale per output channel; likewise
    with ConvInteger.
    """

    name: ClassVar[str] = "quantize-dynamic"
    preserves: ClassVar[Preserves] = LOSSY

    weight_bits: Annotated[int, Field(ge=2, le=8)] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Rewrite in place. Facts: `quantized` nodes."""
        report = Report()
        graph = model.graph
        quantized: dict[ir.Value, ir.Value] = {}
        for node in list(graph):
            if not is_weighted(node) or (self.include and not matches(node, self.include)):
                continue
            reason = "excluded" if matches(node, self.exclude) else _unfit(node)
            if reason is not None:
                report.skip(node.name, reason)
                continue
            weight = find_weight(node)
            array = None if weight is None else weight_array(weight)
            assert weight is not None  # _unfit looked
            assert array is not None
            x = node.inputs[0]
            assert x is not None
            if x not in quantized:
                quantized[x] = add_node(
                    graph, node, "DynamicQuantizeLinear", [x], f"{x.name}_quantized", ir.DataType.UINT8, outputs=3
                )
            bits = weight_bits_for(self.weight_bits, context)
            spec = QuantSpec("int8", True, bits, axis=output_axis(weight), observer="minmax")
            _replace(graph, node, weight, array, spec, quantized[x])
            report.change(node.name, f"{node.op_type} on uint8 by its run-time range, {array.shape} weights in int8")
        remove_unused(model)
        report.facts["quantized"] = len(report.changes)
        return report


def _unfit(node: ir.Node) -> str | None:
    """Why this node stays float."""
    if node.op_type not in _DYNAMIC:
        return f"there is no integer {node.op_type} in ONNX"
    weight = find_weight(node)
    if weight is None or weight.index == 0:
        return "its weight is computed at run time" if weight is None else "its weight is the left operand"
    array = weight_array(weight)
    if array is None:
        return f"its weight {weight.root.name!r} comes through a Reshape: run fold-constants first"
    if array.dtype != np.float32 or not array.size or not np.isfinite(array).all():
        return "its weight is empty, not finite, or not float32"
    if output_axis(weight) is None:
        return "no axis of its weight counts output channels"
    if node.attributes.get_int("transA", 0):
        return "its input is transposed"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return "its bias is computed at run time" if bias is not None and constant_array(bias) is None else None


def _replace(graph: ir.Graph, node: ir.Node, weight: Weight, array: Array, spec: QuantSpec, q: ir.Value) -> None:
    hint, float32 = str(node.name), ir.DataType.FLOAT
    quantize = q.producer()
    assert quantize is not None
    w, scale, _ = quantize_weight(array, spec)
    conv = node.op_type == "Conv"
    attributes = {name: a.value for name, a in node.attributes.items()} if conv else {}
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0):
        w = w.T
    scale = scale * np.float32(node.attributes.get_float("alpha", 1.0))
    column = (-1, *[1] * (array.ndim - 2)) if conv else (-1,)
    stored = add_constant(graph, f"{weight.root.name}_quantized", w)
    kind = "ConvInteger" if conv else "MatMulInteger"
    integers = [q, stored, quantize.outputs[2]]
    total = add_node(graph, node, kind, [*integers], f"{hint}_integer", ir.DataType.INT32, **attributes)
    scales = add_constant(graph, f"{weight.root.name}_scale", scale.reshape(column))
    step = add_node(graph, node, "Mul", [quantize.outputs[1], scales], f"{hint}_scale", float32)
    cast = add_node(graph, node, "Cast", [total], f"{hint}_float", float32, to=int(float32))
    result = add_node(graph, node, "Mul", [cast, step], f"{hint}_scaled", float32)
    bias = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        bias = bias * np.float32(node.attributes.get_float("beta", 1.0))
        added = add_constant(graph, f"{hint}_bias", bias.reshape(column) if conv else bias)
        result = add_node(graph, node, "Add", [result, added], f"{hint}_biased", float32)
    replace_node(graph, node, result)
