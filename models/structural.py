"""Well-known networks of which the onnx package carries the structure: weights are seeded, labels there are none.

They are for what depends on structure: which BatchNorms fold, node counts, latency. onnx keeps them, for its own
tests, as "light" models whose large weights are one repeated number; `realistic` gives them all new weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphopt.models.base import Array, ReferenceModel
from graphopt.models.cache import built

if TYPE_CHECKING:
    import onnx_ir as ir


def images(batch: int, seed: int = 0) -> Array:
    """Random images (batch, 3, 224, 224) float32, normalised as ImageNet's are: mean about 0, variance about 1.

    Their spectrum falls as ``1 / f^a`` as in photographs, `a`, colour cast and contrast differing between images.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(224)[:, None], np.fft.rfftfreq(224))
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.standard_normal((batch, 4, 224, 224)))
    layers = np.fft.irfft2(noise / frequency ** rng.uniform(0.8, 1.3, (batch, 1, 1, 1)), s=(224, 224))
    layers /= layers.std(axis=(2, 3), keepdims=True)
    colours = layers[:, :1] + 0.5 * layers[:, 1:]  # the channels of a photograph go together
    contrast, cast = rng.uniform(0.6, 1.0, (batch, 1, 1, 1)), rng.normal(0, 0.4, (batch, 3, 1, 1))
    return (contrast * colours + cast).astype(np.float32)


def _write(path: Path, light: str) -> None:
    import onnx
    import onnx_ir as ir

    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    proto = onnx.version_converter.convert_version(onnx.load(folder / f"light_{light}.onnx"), 17)
    model = ir.from_proto(proto)
    model.ir_version = 8
    _weights_to_initializers(model)
    _symbolic_batch(model)
    finish(model, path)


def finish(model: ir.Model, path: Path) -> None:
    """Give `model` its weights and save it."""
    import onnx_ir as ir

    from graphopt.models.realistic import realistic

    (image,) = model.graph.inputs
    realistic(model, {str(image.name): images(8)}, seed=0)
    ir.save(model, path)


def _weights_to_initializers(model: ir.Model) -> None:
    """Each ConstantOfShape becomes an initializer of its shape; initializers leave the inputs."""
    import onnx_ir as ir

    graph = model.graph
    for node in [node for node in graph if node.op_type == "ConstantOfShape"]:
        (shape,), (output,) = node.inputs, node.outputs
        assert shape is not None
        assert shape.const_value is not None
        name, dims = str(output.name), tuple(shape.const_value.numpy())
        output.name = f"{name}/light"
        weight = ir.Value(name=name, const_value=ir.tensor(np.zeros(dims, np.float32), name=name))
        weight.dtype, weight.shape = ir.DataType.FLOAT, ir.Shape(dims)
        graph.register_initializer(weight)
        output.replace_all_uses_with(weight)
        graph.remove(node, safe=True)
    graph.inputs[:] = [value for value in graph.inputs if not value.is_initializer()]
    for value in [value for value in graph.initializers.values() if not value.uses()]:
        del graph.initializers[str(value.name)]


def _symbolic_batch(model: ir.Model) -> None:
    """The batch of 1 becomes N: in the signature, and in each Reshape of activations, where 0 copies it."""
    import onnx_ir as ir

    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape(("N", *value.shape[1:]))
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None  # of batch 1; inferred anew
        if node.op_type == "Reshape":
            data, target = node.inputs
            if data is None or target is None or data.is_initializer() or target.const_value is None:
                continue
            dims = target.const_value.numpy()
            target.const_value = ir.tensor(np.concatenate([[0], dims[1:]]), name=target.name)


def structural(name: str, image: str, summary: str, write: Callable[[Path], None], *builders: str) -> ReferenceModel:
    """An entry of the registry: the model that `write` makes, with the input `image` (N, 3, 224, 224)."""
    return ReferenceModel(
        name=name,
        summary=f"{summary}; seeded weights, for structure and latency only",
        licence="Apache-2.0",
        source="structure from the onnx package" if not builders else "built after the paper",
        path=lambda: built(f"{name}.onnx", write, __file__, _REALISTIC, *builders),
        example=lambda batch: {image: images(batch, seed=1)},
        calibration=lambda: [{image: images(4, seed)} for seed in range(2, 6)],
        evaluation=None,
        baseline=None,
    )


def _light(name: str, light: str, image: str, summary: str) -> ReferenceModel:
    return structural(name, image, summary, partial(_write, light=light))


_REALISTIC = str(Path(__file__).with_name("realistic.py"))

RESNET50 = _light("resnet50", "resnet50", "gpu_0/data_0", "ResNet-50 with 53 unfused BatchNorm")
DENSENET121 = _light("densenet121", "densenet121", "data_0", "DenseNet-121 with 121 BatchNorm before its Convs")
VGG19 = _light("vgg19", "vgg19", "data_0", "VGG-19, 144 million parameters")
SQUEEZENET = _light("squeezenet", "squeezenet", "data_0", "SqueezeNet 1.1")
INCEPTION_V1 = _light("inception-v1", "inception_v1", "data_0", "Inception v1 (GoogLeNet)")
INCEPTION_V2 = _light("inception-v2", "inception_v2", "data_0", "Inception v2 with 69 BatchNorm and Mul, Add")
SHUFFLENET = _light("shufflenet", "shufflenet", "gpu_0/data_0", "ShuffleNet: grouped Conv, channel shuffles")
