"""ResNet-18 and MobileNetV2 built layer by layer after their papers; the weights are seeded, labels there are none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphopt.models.structural import finish, structural

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnx_ir.tape

    Tape = onnx_ir.tape.Tape


def _resnet18(tape: Tape, image: ir.Value) -> ir.Value:
    """He et al., Deep Residual Learning, 2015: table 1, 18 layers, projection shortcuts."""
    x = _relu(tape, _conv_bn(tape, image, "stem", 3, 64, kernel=7, stride=2))
    x = _op(tape, "MaxPool", "stem.pool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, outputs in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = _relu(tape, _conv_bn(tape, x, f"{name}.1", channels, outputs, kernel=3, stride=stride))
            y = _conv_bn(tape, y, f"{name}.2", outputs, outputs, kernel=3)
            if channels != outputs:
                x = _conv_bn(tape, x, f"{name}.shortcut", channels, outputs, kernel=1, stride=stride)
            x = _relu(tape, _op(tape, "Add", f"{name}.add", [y, x]))
            channels = outputs
    return _classifier(tape, x, channels)


_MOBILENET_V2_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, output channels, repeats, stride of the first."""


def _mobilenet_v2(tape: Tape, image: ir.Value) -> ir.Value:
    """Sandler et al., MobileNetV2, 2018: table 2, width 1; ReLU6 is a Clip."""
    bounds = [_weight(tape, f"relu6.{end}", (), value) for end, value in (("min", 0), ("max", 6))]

    def relu6(x: ir.Value) -> ir.Value:
        return _op(tape, "Clip", f"{x.name}.relu6", [x, *bounds])

    x = relu6(_conv_bn(tape, image, "stem", 3, 32, kernel=3, stride=2))
    channels, index = 32, 0
    for expansion, outputs, repeats, first_stride in _MOBILENET_V2_BLOCKS:
        for repeat in range(repeats):
            name, stride, hidden = f"block{index}", first_stride if repeat == 0 else 1, channels * expansion
            y = x
            if expansion > 1:
                y = relu6(_conv_bn(tape, y, f"{name}.expand", channels, hidden, kernel=1))
            y = relu6(_conv_bn(tape, y, f"{name}.depthwise", hidden, hidden, kernel=3, stride=stride, group=hidden))
            y = _conv_bn(tape, y, f"{name}.project", hidden, outputs, kernel=1)
            x = _op(tape, "Add", f"{name}.add", [x, y]) if stride == 1 and channels == outputs else y
            channels, index = outputs, index + 1
    x = relu6(_conv_bn(tape, x, "head", channels, 1280, kernel=1))
    return _classifier(tape, x, 1280)


def _conv_bn(
    tape: Tape, x: ir.Value, name: str, inputs: int, outputs: int, *, kernel: int, stride: int = 1, group: int = 1
) -> ir.Value:
    weight = _weight(tape, f"{name}.conv.weight", (outputs, inputs // group, kernel, kernel))
    shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": group}
    x = _op(tape, "Conv", f"{name}.conv", [x, weight], **shape)
    moments = [_weight(tape, f"{name}.bn.{key}", (outputs,)) for key in ("scale", "bias", "mean", "var")]
    return _op(tape, "BatchNormalization", f"{name}.bn", [x, *moments])


def _relu(tape: Tape, x: ir.Value) -> ir.Value:
    return _op(tape, "Relu", f"{x.name}.relu", [x])


def _classifier(tape: Tape, x: ir.Value, channels: int) -> ir.Value:
    x = _op(tape, "GlobalAveragePool", "pool", [x])
    x = _op(tape, "Flatten", "flatten", [x])
    weights = [_weight(tape, "classifier.weight", (1000, channels)), _weight(tape, "classifier.bias", (1000,))]
    return _op(tape, "Gemm", "classifier", [x, *weights], transB=1)


def _op(tape: Tape, op_type: str, name: str, inputs: list[ir.Value], **attributes: int | list[int]) -> ir.Value:
    import onnx_ir as ir

    return tape.op(op_type, inputs, attributes, name=name, output=ir.Value(name=name))


def _weight(tape: Tape, name: str, shape: tuple[int, ...], value: float = 0) -> ir.Value:
    import onnx_ir as ir

    return tape.initializer(ir.tensor(np.full(shape, value, np.float32), name=name))


def _write(path: Path, network: Callable[[Tape, ir.Value], ir.Value]) -> None:
    import onnx_ir as ir
    import onnx_ir.tape

    from graphopt.models.export import model_of

    tape = onnx_ir.tape.Tape()
    image = ir.val("image", ir.DataType.FLOAT, ("N", 3, 224, 224))
    logits = network(tape, image)
    logits.name, logits.dtype, logits.shape = "logits", ir.DataType.FLOAT, ir.Shape(("N", 1000))
    finish(model_of(tape, [image], [logits], path.stem), path)


RESNET18 = structural(
    "resnet18", "image", "ResNet-18 with 20 unfused BatchNorm", partial(_write, network=_resnet18), __file__
)
MOBILENET_V2 = structural(
    "mobilenet-v2", "image", "MobileNetV2 with 52 unfused BatchNorm", partial(_write, network=_mobilenet_v2), __file__
)
