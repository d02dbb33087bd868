"""Handwritten digits, 8 x 8: a small residual CNN with its data, both in the repository.

Data: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
Repository, doi 10.24432/C50P49, CC BY 4.0, in the copy that scikit-learn ships (the 1,797 images of the test
set), frozen as `digits.npz`. `python -m graphopt.models.digits` freezes the data and trains the model anew.
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
    """Images (1797, 1, 8, 8) float32 in [0, 1] and labels (1797,) int64."""
    with np.load(_HERE / "digits.npz") as frozen:
        return frozen["images"][:, None].astype(np.float32) / 16, frozen["labels"].astype(np.int64)


IMAGES = LabelledImages(data, held_out=500, selection=300, calibration=256, seed=20)


def train(path: Path, epochs: int = 30) -> None:
    """Train on the images that are not held out, and save the ONNX model at `path`."""
    import onnx_ir as ir

    from graphopt.models.export import to_onnx
    from graphopt.models.layers import BatchNorm, Classifier, Conv, MaxPool, Relu, Residual

    network = (
        *(Conv("conv1", 1, 16), BatchNorm("bn1", 16), Relu("relu1")),
        *(Conv("conv2", 16, 32), BatchNorm("bn2", 32), Relu("relu2"), MaxPool("pool2")),
        Residual(
            "add4",
            (
                *(Conv("conv3", 32, 32), BatchNorm("bn3", 32), Relu("relu3")),
                *(Conv("conv4", 32, 32), BatchNorm("bn4", 32)),
            ),
        ),
        *(Relu("relu4"), MaxPool("pool4")),
        *(Conv("conv5", 32, 48), BatchNorm("bn5", 48), Relu("relu5")),
        Classifier("classifier", 48, 10),
    )
    images, labels = IMAGES.training()
    params = fit(network, images, labels, Recipe(epochs, IMAGES.seed, shift=1))
    ir.save(to_onnx(network, params, (1, 8, 8), "digits"), path)


def freeze(path: Path) -> None:
    """Write scikit-learn's copy of the data to `path`: images (1797, 8, 8) of 0..16 and labels, uint8."""
    member = fetch_member(
        "scikit-learn",
        "1.7.2",
        "sklearn/datasets/data/digits.csv.gz",
        "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    )
    with gzip.open(member) as rows:
        table = np.loadtxt(rows, delimiter=",").astype(np.uint8)
    np.savez_compressed(path, images=table[:, :64].reshape(-1, 8, 8), labels=table[:, 64])


DIGITS = ReferenceModel(
    name="digits",
    summary="residual CNN with 5 unfused BatchNorm on 8x8 handwritten digits, trained in numpy",
    licence="Apache-2.0 (model), CC-BY-4.0 (data)",
    source="in the repository; data from UCI's Optical Recognition of Handwritten Digits",
    path=lambda: _HERE / "digits.onnx",
    example=IMAGES.example,
    calibration=IMAGES.calibrate,
    evaluation=IMAGES.evaluate,
    unlabelled=IMAGES.unlabelled,
    selection=IMAGES.select,
    baseline=0.994,
)

if __name__ == "__main__":
    freeze(_HERE / "digits.npz")
    train(_HERE / "digits.onnx")
