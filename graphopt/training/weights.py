"""Which weights of a model are trained, and their values on the way from the model to the program and back."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import constant_array
from graphopt.training.window import Array

OPERANDS: dict[str, tuple[int, ...]] = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "Mul": (0, 1),
    "PRelu": (1,),
    "Sub": (0, 1),
}
"""Where operators read what is trained. Embeddings (Gather) stay: a step would touch a few rows of very many."""


def trainable(model: ir.Model, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[str]:
    """Names of the float32 initializers that training changes; constants of that kind become initializers.

    `include`, `exclude`: node names or operators, ``*`` allowed, of the nodes that read them.
    """
    from graphopt.passes.weights import matches

    common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=2)(model)
    found: list[str] = []
    for name, value in model.graph.initializers.items():
        uses = list(value.uses())
        if value.dtype != ir.DataType.FLOAT or not uses or value.is_graph_output() or value.is_graph_input():
            continue
        array = constant_array(value)
        if array is None or array.size < 2 or not all(_reads(node, index) for node, index in uses):
            continue
        if all((not include or matches(node, include)) and not matches(node, exclude) for node, _ in uses):
            found.append(name)
    return found


def put_back(model: ir.Model, weights: dict[str, Array]) -> None:
    """The trained values become the model's."""
    for name, array in weights.items():
        model.graph.initializers[name].const_value = ir.tensor(array.copy(), name=name)


def _reads(node: ir.Node, index: int) -> bool:
    return node.domain == "" and index in OPERANDS.get(node.op_type, ()) and isinstance(node.graph, ir.Graph)
