"""A trained network as an ONNX model: BatchNorm stays unfused, for a pass to fold."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import onnx_ir.tape

from graphopt.models.layers import BatchNorm, Classifier, Conv, Layer, MaxPool, Params, Relu, Residual

OPSET = 17
IR_VERSION = 8


def to_onnx(layers: tuple[Layer, ...], params: Params, shape: tuple[int, int, int], name: str) -> ir.Model:
    """The model ``image`` (N, *shape) -> ``logits`` (N, classes), N symbolic; nodes bear their layers' names."""
    tape = onnx_ir.tape.Tape()
    image = ir.val("image", ir.DataType.FLOAT, ("N", *shape))
    logits = _chain(tape, layers, params, image)
    logits.name, logits.dtype = "logits", ir.DataType.FLOAT
    logits.shape = ir.Shape(("N", params[f"{layers[-1].name}.bias"].shape[0]))
    return model_of(tape, [image], [logits], name)


def model_of(tape: onnx_ir.tape.Tape, inputs: list[ir.Value], outputs: list[ir.Value], name: str) -> ir.Model:
    """What `tape` recorded, as a model of this module's opset."""
    graph = ir.Graph(
        inputs, outputs, nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": OPSET}, name=name
    )
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="graphopt")


def _chain(tape: onnx_ir.tape.Tape, layers: tuple[Layer, ...], params: Params, x: ir.Value) -> ir.Value:
    for layer in layers:
        x = _emit(tape, layer, params, x)
    return x


def _emit(tape: onnx_ir.tape.Tape, layer: Layer, params: Params, x: ir.Value) -> ir.Value:
    name = layer.name

    def op(op_type: str, inputs: list[ir.Value], suffix: str = "", **attributes: Any) -> ir.Value:
        output = ir.Value(name=f"{name}{suffix}.out")
        return tape.op(op_type, inputs, attributes, name=name + suffix, output=output)

    def weights(*keys: str) -> list[ir.Value]:
        return [tape.initializer(ir.tensor(params[f"{name}.{key}"], name=f"{name}.{key}")) for key in keys]

    match layer:
        case Conv(kernel=k):
            return op("Conv", [x, *weights("weight")], kernel_shape=[k, k], pads=[k // 2] * 4)
        case BatchNorm(epsilon=epsilon):
            return op("BatchNormalization", [x, *weights("scale", "bias", "mean", "var")], epsilon=epsilon)
        case Relu():
            return op("Relu", [x])
        case MaxPool():
            return op("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
        case Residual(body=body):
            return op("Add", [x, _chain(tape, body, params, x)])
        case Classifier():
            flat = op("Flatten", [op("GlobalAveragePool", [x], ".pool")], ".flatten", axis=1)
            return op("Gemm", [flat, *weights("weight", "bias")], transB=1)
        case _:
            raise TypeError(f"{type(layer).__name__} has no ONNX form here")
