"""The options of training, the same in Python and on the command line."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

Distance = Literal["l1", "l2", "cosine", "kl"]


@dataclass(frozen=True)
class Settings:
    """How a model is trained toward its teacher's outputs, and labels where there are some.

    epochs: passes over the data at most. batch: samples a step, where the model's batch size is open.
    lr: the learning rate at its highest. schedule: after a linear rise over the first `warmup` of the steps it stays,
    falls linearly to zero, or along a cosine. optimizer, weight_decay: see `graphopt.training.optimizers`.
    distance, temperature: how the outputs are compared; see `graphopt.training.losses`.
    distil: lambda, the weight of that distance; task: the weight of the loss on the labels, where there are labels.
    outputs: the outputs compared, all those of floats where none are named.
    mixup: the part of the steps whose inputs are mixed in pairs, ``a x_i + (1 - a) x_j`` with a from U(0, 1), and given
    to the teacher as well: more inputs to agree on than the data has. Inputs of integers are not mixed.
    held_out: the part of the data that is not trained on and says which epoch was best, and whether any was better
    than none. patience: epochs without a better one after which training stops.
    keep_zeros: weights that are zero (pruned) stay zero.
    checkpoint: an .npz file written after every epoch; training that finds one goes on from there.
    include, exclude: node names or operators, ``*`` allowed: whose weights are trained.
    """

    epochs: Annotated[int, Field(ge=1)] = 20
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    batch: Annotated[int, Field(ge=1)] = 32
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    distance: Distance = "l2"
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    distil: Annotated[float, Field(ge=0.0)] = 1.0
    task: Annotated[float, Field(ge=0.0)] = 1.0
    outputs: tuple[str, ...] = ()
    mixup: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.125
    patience: Annotated[int, Field(ge=1)] = 10
    keep_zeros: bool = True
    checkpoint: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def rate(self, done: float) -> float:
        """The learning rate when the part `done` of all steps is done."""
        if done < self.warmup:
            return self.lr * done / self.warmup
        left = (1 - done) / (1 - self.warmup)
        falling = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
        return self.lr * falling[self.schedule]
