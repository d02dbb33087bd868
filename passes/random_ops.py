"""Which operators give other numbers each time they run: never folded, never merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.graph import constant_array

if TYPE_CHECKING:
    import onnx_ir as ir

RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)


def is_random(node: ir.Node) -> bool:
    """Whether `node` draws random numbers; Dropout does in training."""
    if node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type in RANDOM or (node.op_type == "Dropout" and not is_inference_dropout(node))


def is_inference_dropout(node: ir.Node) -> bool:
    """Whether the Dropout `node` passes its input on: `training_mode` is missing or constantly false."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is None:
        return True
    array = constant_array(training)
    return array is not None and not array.any()
