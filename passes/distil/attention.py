"""Attention whose cost grows with the length of a sequence, in place of its square."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, constant_array, used_once
from graphopt.passes.batch_norm.reading import is_onnx

LEAST = 1e-3
"""What is added to features, so that there is something to divide by."""


@dataclasses.dataclass(frozen=True)
class Attention:
    """``output = softmax(f * queries keys) values``; `keys` are turned: (..., d, T). `scale` is ``sqrt(f d)``."""

    queries: ir.Value
    keys: ir.Value
    values: ir.Value
    scale: float
    output: ir.Value


def linearise(model: ir.Model) -> int:
    """Make every attention without a mask linear, in place; how many there were.

    ``softmax(f Q K^T) V`` becomes ``phi(Q) (phi(K)^T V) / (phi(Q) sum_j phi(K_j))`` (Katharopoulos et al. 2020,
    Transformers are RNNs), here with ``phi(x) = [relu(1 + a x), relu(1 - a x)]`` and ``a^2 = f d`` for d channels a
    head: so ``phi(q) phi(k) = 2 d (1 + f q k)`` while all ``|a x| < 1``, the Softmax's first order (both signs: Zhang
    et al. 2024, The Hedgehog and the Porcupine). The weights that make Q, K and V stay the teacher's: they are what is
    trained. It has fewer MACs where a sequence is longer than twice the channels of a head.
    """
    found = [one for node in model.graph if (one := _attention(node)) is not None]
    for one in found:
        _replace(model.graph, one)
    return len(found)


def _attention(softmax: ir.Node) -> Attention | None:
    """What ends in this Softmax and the MatMul behind it, if that is an attention without a mask."""
    if not is_onnx(softmax, "Softmax") or not used_once(softmax.outputs[0]):
        return None
    if softmax.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    weights, scores = softmax.outputs[0], softmax.inputs[0]
    ((reader, index),) = weights.uses()
    rank = None if weights.shape is None else weights.shape.rank()
    if (
        not is_onnx(reader, "MatMul")
        or index != 0
        or softmax.attributes.get_int("axis", -1) not in (-1, (rank or 0) - 1)
    ):
        return None
    factor, node = 1.0, None if scores is None else scores.producer()
    while node is not None and is_onnx(node, "Mul", "Div") and used_once(node.outputs[0]):
        numbers = [constant_array(value) for value in node.inputs]
        places = [k for k, number in enumerate(numbers) if number is not None and number.size == 1]
        if not places or (node.op_type == "Div" and places != [1]):
            return None
        number = float(np.asarray(numbers[places[0]]).reshape(()))
        factor *= number if node.op_type == "Mul" else 1 / number
        scores = node.inputs[1 - places[0]]
        node = None if scores is None else scores.producer()
    if node is None or not is_onnx(node, "MatMul") or factor <= 0 or not used_once(node.outputs[0]):
        return None
    queries, keys, values = node.inputs[0], node.inputs[1], reader.inputs[1]
    if queries is None or keys is None or values is None or constant_array(keys) is not None:
        return None
    channels = None if queries.shape is None else queries.shape[-1]
    if not isinstance(channels, int):
        return None
    return Attention(queries, keys, values, float(np.sqrt(factor * channels)), reader.outputs[0])


def _replace(graph: ir.Graph, old: Attention) -> None:
    product = old.output.producer()
    assert product is not None
    name, made = str(product.name), list[ir.Node]()
    scales = [add_constant(graph, f"{name}_scale", np.array(sign * old.scale, np.float32)) for sign in (1, -1)]
    one = add_constant(graph, f"{name}_one", np.ones((), np.float32))
    least = add_constant(graph, f"{name}_least", np.array(LEAST, np.float32))
    last = add_constant(graph, f"{name}_last", np.array([-1]))

    def put(kind: str, inputs: list[ir.Value], hint: str) -> ir.Value:
        made.append(ir.node(kind, inputs, name=f"{name}_{hint}"))
        (value,) = made[-1].outputs
        value.name, value.dtype = f"{name}_{hint}", ir.DataType.FLOAT
        return value

    def phi(x: ir.Value, scale: ir.Value, hint: str) -> ir.Value:
        moved = put("Add", [put("Mul", [x, scale], f"{hint}_scaled"), one], f"{hint}_moved")
        return put("Add", [put("Relu", [moved], f"{hint}_relu"), least], hint)

    parts: list[tuple[ir.Value, ir.Value]] = []
    for sign, scale in zip(("plus", "minus"), scales, strict=True):
        queries, keys = phi(old.queries, scale, f"queries_{sign}"), phi(old.keys, scale, f"keys_{sign}")
        memory = put("MatMul", [keys, old.values], f"memory_{sign}")
        sums = put("ReduceSum", [keys, last], f"sums_{sign}")
        parts.append(
            (put("MatMul", [queries, memory], f"above_{sign}"), put("MatMul", [queries, sums], f"below_{sign}"))
        )
    (a, b), (c, d) = parts
    above, below = put("Add", [a, c], "above"), put("Add", [b, d], "below")
    result = put("Div", [above, below], "linear")
    result.type, result.shape = old.output.type, old.output.shape
    ir.convenience.replace_nodes_and_values(graph, product, [product], made, [old.output], [result])
