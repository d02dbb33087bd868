"""Put QuantizeLinear and DequantizeLinear nodes into the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, constant_array, derive, fresh_name
from graphopt.passes.quant.arithmetic import least_scale, quantize_bias, quantize_weight
from graphopt.passes.quant.original import Original, held, remember
from graphopt.passes.quant.spec import QuantSpec
from graphopt.passes.weights import find_weight, output_axis, weight_array, weight_reader

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Scale:
    """Scale and zero point as initializers of the graph, and the scale's value(s)."""

    array: Array
    scale: ir.Value
    zero_point: ir.Value


def add_scale(graph: ir.Graph, hint: str, scale: Array, zero_point: Array) -> Scale:
    """Initializers ``<hint>_scale`` and ``<hint>_zero_point``."""
    return Scale(
        scale, add_constant(graph, f"{hint}_scale", scale), add_constant(graph, f"{hint}_zero_point", zero_point)
    )


def insert_pair(graph: ir.Graph, value: ir.Value, scale: Scale, nodes: Collection[ir.Node]) -> ir.Value:
    """Put a Q/DQ pair after `value`; returns the dequantized value.

    All readers take it, with two exceptions: graph outputs stay as they are, and where a float node computes
    `value`, so do readers outside `nodes`, the ones that work on integers: they gain nothing from the loss.
    """
    producer = value.producer()
    readers = [(node, i) for node, i in value.uses() if producer in nodes or node in nodes]
    quantize = ir.node("QuantizeLinear", [value, scale.scale, scale.zero_point])
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale.scale, scale.zero_point])
    origins = [producer] if producer is not None else [reader for reader, _ in readers]
    finish(graph, quantize, f"{value.name}_quantized", scale.zero_point, value.shape, origins)
    finish(graph, dequantize, f"{value.name}_dequantized", value, value.shape, origins)
    if producer is None:
        graph.insert_before(graph.node(0), [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    for node, i in readers:
        node.replace_input_with(i, dequantize.outputs[0])
    return dequantize.outputs[0]


class Weights:
    """Quantized weights, each stored once however many nodes share it."""

    def __init__(self, graph: ir.Graph, spec: QuantSpec, per_channel: bool = True) -> None:
        self._graph, self._spec, self._per_channel = graph, spec, per_channel
        self._made: dict[tuple[Any, ...], ir.Value] = {}

    def quantize(self, node: ir.Node, input_scale: Array) -> Array | None:
        """Make `node` read its weight through a DequantizeLinear of integers, per output channel where an axis
        counts them. Returns the weight's scale, None if the node has no weight.
        """
        weight = find_weight(node)
        array = None if weight is None else weight_array(weight)
        if weight is None or array is None:
            return None
        axis = output_axis(weight) if self._per_channel else None
        bias = int32_bias(node)
        least = 0.0 if bias is None or axis is None else least_scale(bias, input_scale)
        q, scale, zero_point = quantize_weight(array, dataclasses.replace(self._spec, axis=axis), least)
        key = (weight.root, weight.permutation, axis, scale.tobytes())
        if key not in self._made:
            hint = str(weight.root.name)
            made = add_scale(self._graph, hint, scale, zero_point)
            integers = add_constant(self._graph, f"{hint}_quantized", q)
            dequantize = dequantize_constant(self._graph, node, [integers, made.scale, made.zero_point], hint, axis)
            remember(dequantize, Original(weight_reader(weight), self._spec))
            self._made[key] = dequantize
        node.replace_input_with(weight.index, self._made[key])
        return scale


def int32_bias(node: ir.Node) -> Array | None:
    """The bias of `node` if it may be stored as int32: a constant with one element per output channel, and in a
    Gemm alpha = beta = 1.
    """
    weight, bias = find_weight(node), constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    array = None if weight is None else weight_array(weight)
    if weight is None or array is None or bias is None:
        return None
    axis = output_axis(weight)
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return bias if plain and bias.ndim == 1 and (axis is None or len(bias) == array.shape[axis]) else None


def quantize_bias_of(graph: ir.Graph, node: ir.Node, bias: Array, scale: Array) -> bool:
    """Store `bias` as int32 at ``scale = s_x * s_w``; False, and nothing done, where it would clip."""
    scale = np.broadcast_to(scale.astype(np.float32), bias.shape)
    q = quantize_bias(bias, scale)
    if q is None:
        return False
    hint = str(node.inputs[2].name)  # pyright: ignore[reportOptionalMemberAccess]  # it is the bias
    inputs = [add_constant(graph, f"{hint}_quantized", q), add_constant(graph, f"{hint}_scale", scale)]
    dequantized = dequantize_constant(graph, node, inputs, hint, 0)
    remember(dequantized, held(bias))
    node.replace_input_with(2, dequantized)
    return True


def dequantize_constant(
    graph: ir.Graph, reader: ir.Node, inputs: list[ir.Value], hint: str, axis: int | None, block: int | None = None
) -> ir.Value:
    """A DequantizeLinear of constants, right before the first node that reads it."""
    attributes = {key: value for key, value in (("axis", axis), ("block_size", block)) if value is not None}
    node = ir.node("DequantizeLinear", inputs, attributes)
    finish(graph, node, f"{hint}_dequantized", inputs[1], inputs[0].shape, [reader])
    graph.insert_before(reader, node)
    return node.outputs[0]


def finish(
    graph: ir.Graph, node: ir.Node, hint: str, like: ir.Value, shape: ir.Shape | None, origins: list[ir.Node]
) -> None:
    """Name, type (that of `like`), shape and provenance of a new node and its one output."""
    output = node.outputs[0]
    node.name = output.name = fresh_name(graph, hint)
    output.type, output.shape = like.type, shape
    derive(node, origins)


def add_node(
    graph: ir.Graph,
    place: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    hint: str,
    dtype: ir.DataType,
    outputs: int = 1,
    **attributes: Any,
) -> ir.Value:
    """The first output, of `dtype`, of a new node before `place`, whose provenance it has."""
    node = ir.node(op_type, inputs, attributes, num_outputs=outputs)
    node.name = fresh_name(graph, hint)
    for k, output in enumerate(node.outputs):
        output.name = fresh_name(graph, hint if not k else f"{hint}_{k}")
    node.outputs[0].dtype = dtype
    derive(node, [place])
    graph.insert_before(place, node)
    return node.outputs[0]


def replace_node(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Remove `node`; `value` takes the place, name, type and shape of its one result."""
    result = node.outputs[0]
    name, value.type, value.shape = result.name, result.type, result.shape
    ir.convenience.replace_all_uses_with(result, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    value.name = name
