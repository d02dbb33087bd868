"""Labelled images of a model trained here, cut into disjoint parts: held out, for choosing, unlabelled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np

from graphopt.models.base import Array, Evaluation, Feeds, accuracy, batches
from graphopt.models.train import split

BATCH = 32


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images (n, channels, height, width) and labels (n,), which `data` gives, of a model from "image" to "logits".

    A permutation by `seed` sets `held_out` of them aside; the others train the model. Of those, the last `selection`
    serve for choosing budgets, and the first `calibration` of the rest for calibration.
    """

    data: Callable[[], tuple[Array, Array]]
    held_out: int
    selection: int
    calibration: int
    seed: int

    def training(self) -> tuple[Array, Array]:
        """Images and labels that are not held out."""
        return self._take(self._indices()[0])

    def evaluate(self) -> Evaluation:
        """Top-1 accuracy on the images held out."""
        return _labelled(*self._take(self._indices()[1]))

    def select(self) -> Evaluation:
        """Top-1 accuracy on the last `selection` training images."""
        return _labelled(*self._take(self._indices()[0][-self.selection :]))

    def unlabelled(self, n: int) -> list[Feeds]:
        """At most `n` of the other training images, in batches."""
        return list(batches("image", self._take(self._indices()[0][: -self.selection][:n])[0], BATCH))

    def calibrate(self) -> list[Feeds]:
        """The first `calibration` of those, in batches."""
        return self.unlabelled(self.calibration)

    def example(self, batch: int) -> Feeds:
        """The first `batch` training images, over again when there are no more."""
        return {"image": np.take(self.training()[0], range(batch), axis=0, mode="wrap")}

    def _indices(self) -> tuple[Array, Array]:
        return split(len(self.data()[0]), self.held_out, self.seed)

    def _take(self, chosen: Array) -> tuple[Array, Array]:
        images, labels = self.data()
        return images[chosen], labels[chosen]


def _labelled(images: Array, labels: Array) -> Evaluation:
    score = partial(accuracy, output="logits", labels=labels)
    return Evaluation("accuracy", len(labels), lambda: batches("image", images, 100), score)
