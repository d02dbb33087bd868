"""Quantized weights: integers behind a DequantizeLinear whose float tensor is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.base import Report
from graphopt.graph import add_constant, constant_array
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.quant.original import original
from graphopt.passes.quant.spec import QuantSpec
from graphopt.passes.weights import Weight, input_axis, is_weighted, output_axis

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """The weight that `node` reads at `index`: ``(integers - zero_point) * scale`` in place of `array`.

    `integers` (int32), `scale` and `zero_point` (float64) have the shape of `array`, whatever the granularity.
    """

    node: ir.Node
    index: int
    dequantize: ir.Node
    array: Array
    spec: QuantSpec
    integers: Array
    scale: Array
    zero_point: Array

    @property
    def where(self) -> Weight:
        """For `output_axis` and `input_axis`."""
        return Weight(self.node, self.index, self.dequantize.outputs[0], tuple(range(self.array.ndim)))

    @property
    def output_axis(self) -> int | None:
        """See `graphopt.passes.weights.output_axis`."""
        return output_axis(self.where)

    @property
    def input_axis(self) -> int | None:
        """See `graphopt.passes.weights.input_axis`."""
        return input_axis(self.where)

    def back(self, integers: Array) -> Array:
        """The float values that `integers` stand for (float64)."""
        return (integers - self.zero_point) * self.scale


def quantized_weights(graph: ir.Graph, report: Report) -> list[QuantizedWeight]:
    """Those of the main graph, in its order, each once; one that several nodes read is left alone and reported."""
    found: list[QuantizedWeight] = []
    for node in graph:
        weight = quantized_weight(node) if is_weighted(node) else None
        if weight is None:
            continue
        if len(weight.dequantize.outputs[0].uses()) > 1:
            report.skip(node.name, f"its weight {weight.dequantize.inputs[0].name!r} is read by several nodes")  # pyright: ignore[reportOptionalMemberAccess]
        else:
            found.append(weight)
    return found


def quantized_weight(node: ir.Node) -> QuantizedWeight | None:
    """The quantized weight of a weighted node, None where it has none or its float tensor is not known."""
    for index, value in enumerate(node.inputs[:2]):
        dequantize = None if value is None else value.producer()
        if dequantize is None or not is_onnx(dequantize, "DequantizeLinear"):
            continue
        known = original(dequantize)
        if known is not None and known.spec is not None:
            integers = constant_array(dequantize.inputs[0])
            assert integers is not None
            scale, zero_point = _parameters(dequantize, integers.shape)
            wide = integers.astype(np.int32)
            return QuantizedWeight(node, index, dequantize, known.array, known.spec, wide, scale, zero_point)
    return None


def store(weight: QuantizedWeight, integers: Array) -> int:
    """Put `integers` (any integer-valued array) in the weight's place; returns how many differ from before."""
    old = weight.dequantize.inputs[0]
    graph = weight.dequantize.graph
    before = constant_array(old)
    assert old is not None
    assert before is not None
    assert isinstance(graph, ir.Graph)
    hint = str(old.name).removesuffix("_quantized")
    weight.dequantize.replace_input_with(0, add_constant(graph, f"{hint}_quantized", integers.astype(before.dtype)))
    return int((integers.astype(np.int32) != weight.integers).sum())


def _parameters(node: ir.Node, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Scale and zero point of a DequantizeLinear, repeated along its axis or blocks to `shape`, in float64."""
    scale = constant_array(node.inputs[1])
    assert scale is not None
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    zero = np.zeros(scale.shape) if zero is None else zero
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)

    def spread(a: Array) -> Array:
        a = a.astype(np.float64)
        if block:
            a = np.take(np.repeat(a, block, axis), range(shape[axis]), axis)
        elif (a.ndim == 1 and a.size > 1) or (a.ndim == 1 and shape[axis % len(shape)] == 1):
            a = a.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
        return np.broadcast_to(a, shape)

    return spread(scale), spread(zero)
