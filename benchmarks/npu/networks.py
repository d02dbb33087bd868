"""The networks of the NPU's validation, as plain layers that the reference tools' own Pythons can read.

A layer is a dict: `name` (the ONNX node's), `op` (conv, depthwise, dense, add, mul, maxpool, avgpool, concat,
reshape, softmax, sigmoid), `inputs` and `output` (names of tensors), and for windows `kernel`, `stride`, `dilation`
and `same` (out = ceil(in / stride)); `activation` (none, relu, relu6) where one follows. Tensors are NHWC, batch 1.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from graphopt import models
from graphopt.api import open_model
from graphopt.graph import constant_array, used_once
from graphopt.npu.prepare import fix_sizes, folded

Layer = dict[str, Any]
TUNED = ("mobilenet-v2", "resnet18", "resnet50")  # the model was made looking at these
HELD_OUT = ("efficientnet-lite0", "squeezenet", "generated")  # and frozen before these were compared
PLAIN = {
    "Add": "add", "Sum": "add", "Mul": "mul", "Concat": "concat",
    "Flatten": "reshape", "Reshape": "reshape", "Squeeze": "reshape",
    "Softmax": "softmax", "Sigmoid": "sigmoid", "MaxPool": "maxpool", "AveragePool": "avgpool",
    "GlobalAveragePool": "avgpool", "ReduceMean": "avgpool", "Conv": "conv", "Gemm": "dense", "MatMul": "dense",
}  # fmt: skip


def network(name: str) -> ir.Model:
    """The float model, batch 1, BatchNorms folded."""
    if name == "generated":
        from generated import generated

        return generated()
    model = open_model(models.get(name).path())
    fix_sizes(model)
    return folded(model)


def layers(model: ir.Model) -> dict[str, Any]:
    """`{"inputs", "outputs", "tensors": {name: shape}, "layers": [...]}` of a float model."""
    found: list[Layer] = []
    joined: dict[ir.Node, Layer] = {}
    alias: dict[str, str] = {}
    tensors = {str(value.name): _nhwc(value) for value in model.graph.inputs}
    for node in model.graph:
        if node.op_type in ("Relu", "Clip") and node.inputs[0] is not None:
            before = node.inputs[0].producer()
            if before in joined and used_once(node.inputs[0]):
                layer = joined[before]
                layer["activation"] = "relu" if node.op_type == "Relu" else "relu6"
                layer["output"] = str(node.outputs[0].name)
                tensors[layer["output"]] = _nhwc(node.outputs[0])
                joined[node] = layer
                continue
        if node.op_type == "Constant":
            continue
        if node.op_type == "Dropout":  # in inference it hands on what it gets
            assert node.inputs[0] is not None
            alias[str(node.outputs[0].name)] = alias.get(str(node.inputs[0].name), str(node.inputs[0].name))
            continue
        layer = _layer(node)
        layer["inputs"] = [alias.get(name, name) for name in layer["inputs"]]
        found.append(layer)
        joined[node] = layer
        tensors[layer["output"]] = _nhwc(node.outputs[0])
    names = {"inputs": model.graph.inputs, "outputs": model.graph.outputs}
    return {key: [str(v.name) for v in values] for key, values in names.items()} | {"tensors": tensors, "layers": found}


def _layer(node: ir.Node) -> Layer:
    data = [str(v.name) for v in node.inputs if v is not None and constant_array(v) is None]
    layer: Layer = {
        "name": str(node.name), "op": PLAIN[node.op_type], "inputs": data, "output": str(node.outputs[0].name),
        "activation": "none",
    }  # fmt: skip
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    if layer["op"] in ("conv", "maxpool", "avgpool"):
        (_, h, w, c), (_, oh, ow, _) = _nhwc(x), _nhwc(y) if len(y.shape or ()) == 4 else (1, 1, 1, 1)
        kernel = node.attributes.get_ints("kernel_shape", [h, w])
        strides = node.attributes.get_ints("strides", [1, 1])
        layer |= {"kernel": list(kernel), "stride": list(strides)}
        layer["dilation"] = list(node.attributes.get_ints("dilations", [1, 1]))
        layer["same"] = [math.ceil(h / strides[0]), math.ceil(w / strides[1])] == [oh, ow]
        groups = node.attributes.get_int("group", 1)
        if groups != 1:
            assert groups == c, f"{node.name}: {groups} groups of {c} channels"
            layer["op"] = "depthwise"
    return layer


def _nhwc(value: ir.Value) -> list[int]:
    shape = [int(size) for size in (value.shape.numpy() if value.shape is not None else ())]
    return [shape[0], *shape[2:], shape[1]] if len(shape) == 4 else shape
