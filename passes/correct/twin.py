"""The float model behind a quantized one."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.errors import PassError
from graphopt.graph import add_constant, constant_array, remove_unused
from graphopt.graph.edit import forget_names
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.quant.original import KEY, original


def float_twin(model: ir.Model, who: str) -> ir.Model:
    """A copy without any of its QuantizeLinear/DequantizeLinear pairs, and with the float weights and biases.

    Values keep their names, so that those of both models can be compared.

    Raises:
        PassError: a quantized constant's float tensor is not known. Files hold integers alone: `who` has to run in
            the same pipeline as the pass that quantized.
    """
    twin = model.clone()
    forget_names(twin)
    for node in list(twin.graph):
        if not is_onnx(node, "DequantizeLinear"):
            continue
        source = node.inputs[0]
        producer = None if source is None else source.producer()
        known = original(node)
        if known is not None:
            value = add_constant(twin.graph, f"{node.name}_float", known.array)
        elif producer is not None and is_onnx(producer, "QuantizeLinear") and producer.inputs[0] is not None:
            value = producer.inputs[0]
        elif constant_array(source) is not None:
            raise PassError(
                f"{who!r} compares with the float weights, and those of {node.name!r} are not known: run it in the "
                f"same pipeline as the quantization, as in -p insert-qdq,{who}."
            )
        else:
            continue
        if not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(value)
    for value in list(twin.graph.initializers.values()):
        if KEY in value.meta:  # a float bias that a correction moved
            value.replace_all_uses_with(add_constant(twin.graph, f"{value.name}_float", value.meta[KEY].array))
    remove_unused(twin)
    return twin
