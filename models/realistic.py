"""Weights for a network of which only the structure is known: seeded, and alive through the whole depth.

Filters are normal, their taps alike enough to smooth more than they sharpen; scales are positive, small where a
BatchNormalization ends a residual branch, as after training (Goyal et al., Large Minibatch SGD, 2017). Without
these two, rounding errors would grow a hundredfold through a deep random network, and not in a trained one.
Then the statistics follow the data (Mishkin and Matas, All You Need is a Good Init, 2016): node by node over
sample images, each BatchNormalization gets the mean and variance that it meets; each other Conv or Gemm is
scaled to outputs of unit variance, and its bias, if it has one, makes the mean of each channel zero.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx_ir as ir

from graphopt import oracle
from graphopt.errors import ModelError
from graphopt.models.base import Array, Feeds

_BRANCH_SCALE = 0.3


def realistic(model: ir.Model, feeds: Feeds, seed: int) -> None:
    """Give every float weight of `model` a value, in place; `feeds` are the samples that set the statistics.

    Knows the weights of Conv, Gemm, BatchNormalization and of a per-channel Mul and Add, also where a Reshape or
    Unsqueeze stands between; raises `ModelError` for a weight used otherwise.
    """
    rng = np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT and value.shape:  # a scalar is a bound or a factor, not a weight
            _set(value, _draw(*_role(value), tuple(value.shape.numpy()), rng))
    for node in model.graph:
        if node.op_type == "BatchNormalization" and _ends_branch(node):
            scale = _weight(node.inputs[1])
            _set(scale, _BRANCH_SCALE * _array(scale))
    values = dict(feeds)
    uses = Counter(value for node in model.graph for value in node.inputs)
    for node in model.graph:
        inputs = [None if value is None else _array(value, values) for value in node.inputs]
        if node.op_type == "BatchNormalization" and (x := inputs[0]) is not None:
            moments = x.mean((0, 2, 3)), x.var((0, 2, 3))
            inputs[3:5] = moments
            for value, moment in zip(node.inputs[3:5], moments, strict=True):
                _set(_weight(value), moment)
        outputs = _run(model, node, inputs)
        if node.op_type in ("Conv", "Gemm") and not _only_feeds_batch_norm(node.outputs[0]):
            outputs[0] = _normalise(node, outputs[0])
        values.update({str(value.name): array for value, array in zip(node.outputs, outputs, strict=True)})
        uses.subtract(node.inputs)
        for value in node.inputs:
            if value is not None and not uses[value]:
                values.pop(str(value.name), None)


def _normalise(node: ir.Node, y: Array) -> Array:
    """Change the weights so that ``y`` becomes ``(y - mean) / std``: `mean` per channel, 0 without a bias."""
    weight, *bias = (_weight(value) for value in node.inputs[1:])
    axes = (0, *range(2, y.ndim))
    mean = y.mean(axes, keepdims=True) if bias else np.zeros((), np.float32)
    std = (y - mean).std()
    _set(weight, _array(weight) / std)
    for value in bias:
        _set(value, (_array(value) - mean.reshape(-1)) / std)
    return (y - mean) / std


def _draw(op_type: str, index: int, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    match op_type, index:
        case "Conv" | "Gemm", 1:
            taps = rng.standard_normal(shape, np.float32)
            if op_type == "Conv":
                taps += rng.standard_normal((*shape[:2], 1, 1), np.float32)
            return taps / math.sqrt(math.prod(shape[1:]))
        case "BatchNormalization" | "Mul", 1:
            return np.abs(rng.normal(1, 0.3, shape))
        case ("BatchNormalization", 2) | ("Add", 1):
            return rng.normal(0, 0.3, shape)
        case ("Conv" | "Gemm", 2) | ("BatchNormalization", 3 | 4):
            return np.zeros(shape)  # follow from the data
        case _:
            raise ModelError(f"There is no rule for a weight that is input {index} of {op_type}.")


def _role(value: ir.Value) -> tuple[str, int]:
    """What a weight is, by its first use: the consumer's type, and which of its inputs."""
    node, index = next(iter(value.uses()))
    return _role(node.outputs[0]) if node.op_type in ("Reshape", "Unsqueeze") else (node.op_type, index)


def _ends_branch(node: ir.Node) -> bool:
    """Whether the output is only added to a block's input, rather than to a shortcut that ends likewise."""
    consumers = node.outputs[0].consumers()
    return [consumer.op_type in ("Add", "Sum") for consumer in consumers] == [True] and any(
        not value.is_initializer() and not (_is_normalised(value) and len(value.uses()) == 1)
        for value in consumers[0].inputs
        if value is not None
    )


def _is_normalised(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "BatchNormalization"


def _only_feeds_batch_norm(value: ir.Value) -> bool:
    return bool(value.uses()) and all(node.op_type == "BatchNormalization" for node in value.consumers())


def _run(model: ir.Model, node: ir.Node, arrays: list[Array | None]) -> list[Array]:
    """The outputs of `node` alone."""
    feeds = {f"input{index}": array for index, array in enumerate(arrays) if array is not None}
    inputs = {name: ir.val(name, ir.DataType.from_numpy(array.dtype), array.shape) for name, array in feeds.items()}
    operands = [inputs.get(f"input{index}") for index in range(len(arrays))]
    outputs = [ir.val(f"output{index}", output.dtype) for index, output in enumerate(node.outputs)]
    alone = ir.Node(node.domain, node.op_type, operands, node.attributes.values(), outputs=outputs)
    graph = ir.Graph(list(inputs.values()), outputs, nodes=[alone], opset_imports=model.opset_imports, name="node")
    return list(oracle.run(ir.Model(graph, ir_version=model.ir_version), feeds).values())


def _weight(value: ir.Value | None) -> ir.Value:
    """The initializer behind `value`, through a Reshape of it."""
    if value is None:
        raise ModelError("A weight is missing.")
    producer = value.producer()
    return value if producer is None else _weight(producer.inputs[0])


def _array(value: ir.Value, computed: Feeds | None = None) -> Array:
    constant = value.const_value
    return constant.numpy() if constant is not None else (computed or {})[str(value.name)]


def _set(value: ir.Value, array: Array) -> None:
    value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
