"""The float model behind a quantized one."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from graphopt.errors import PassError
from graphopt.graph import add_constant, constant_array, remove_unused
from graphopt.graph.edit import forget_names
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.quant.original import KEY, original


def float_twin(model: ir.Model, who: str, keep: Collection[str] = ()) -> ir.Model:
    """A copy without any of its QuantizeLinear/DequantizeLinear pairs, and with the float weights and biases.

    Values keep their names, so that those of both models can be compared. Nodes named in `keep` go on reading what
    is dequantized.

    Raises:
        PassError: a quantized constant's float tensor is not known. Files hold integers alone: `who` has to run in
            the same pipeline as the pass that quantized.
    """
    twin = model.clone()
    forget_names(twin)
    for node in list(twin.graph):
        if is_onnx(node, "DequantizeLinear"):
            value = _float_value(twin.graph, node, who)
            if value is not None:
                _replace(node.outputs[0], value, keep)
    for value in list(twin.graph.initializers.values()):
        if KEY in value.meta:  # a float bias that a correction moved
            _replace(value, add_constant(twin.graph, f"{value.name}_float", value.meta[KEY].array), keep)
    remove_unused(twin)
    return twin


def _float_value(graph: ir.Graph, dequantize: ir.Node, who: str) -> ir.Value | None:
    """What was quantized into what this node dequantizes; None where that is not in the graph."""
    known, source = original(dequantize), dequantize.inputs[0]
    if known is not None:
        return add_constant(graph, f"{dequantize.name}_float", known.array)
    producer = None if source is None else source.producer()
    if producer is not None and is_onnx(producer, "QuantizeLinear"):
        return producer.inputs[0]
    if constant_array(source) is None:
        return None
    raise PassError(
        f"{who!r} compares with the float weights, and those of {dequantize.name!r} are not known: run it in the "
        f"same pipeline as the quantization, as in -p insert-qdq,{who}."
    )


def _replace(value: ir.Value, by: ir.Value, keep: Collection[str]) -> None:
    for node, index in value.uses():
        if node.name not in keep:
            node.replace_input_with(index, by)
