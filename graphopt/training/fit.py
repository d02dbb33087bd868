"""Training: the weights of a model follow a teacher's outputs, and labels where there are some."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data import Batches, Feeds
from graphopt.errors import DataError, LoweringError, UsageError
from graphopt.oracle import Session
from graphopt.progress import meter
from graphopt.training import checkpoints
from graphopt.training.optimizers import Optimizer
from graphopt.training.program import TEACHER, Objective, Program
from graphopt.training.settings import Settings
from graphopt.training.stream import LABELS, count, labelled, minibatches, mixed
from graphopt.training.weights import put_back, trainable
from graphopt.training.window import Array

PROGRAMS = 8
"""Shapes of batches that a program is kept for."""


@dataclasses.dataclass
class History:
    """What training did: `losses` on the held-out data before the first epoch and after each, `best` the epoch kept.

    `best` is 0 where no epoch was better than none. `stopped`: why training ended before its last epoch, or "".
    """

    losses: list[float] = dataclasses.field(default_factory=list[float])
    trained: list[float] = dataclasses.field(default_factory=list[float])
    best: int = 0
    steps: int = 0
    weights: int = 0
    seconds: float = 0.0
    stopped: str = ""


def fit(
    model: ir.Model,
    teacher: ir.Model | None,
    data: Batches,
    settings: Settings,
    *,
    labels: Array | None = None,
    seed: int = 0,
) -> History:
    """Train the weights of `model` in place; those of the best epoch are kept.

    Args:
        model: its float32 weights change (see `weights.OPERANDS`), nothing else does.
        teacher: what gives the outputs to follow; None with labels only. Its inputs and outputs are the model's.
        data: inputs. A batch axis of open size lets batches be cut and samples be shuffled.
        labels: for each sample in order: the class (integers), or the value the first output compared should have.
        seed: of the order of the samples and of the mixtures.

    Raises:
        DataError: too few data to hold some out, or labels that don't fit them.
        LoweringError: an operator has no gradient.
        UsageError: nothing to train, or nothing to follow.
    """
    return _Run(model, teacher, data, settings, labels, seed).run()


class _Run:
    def __init__(
        self,
        model: ir.Model,
        teacher: ir.Model | None,
        data: Batches,
        settings: Settings,
        labels: Array | None,
        seed: int,
    ) -> None:
        import tvm

        self._model, self._settings, self._seed = model, settings, seed
        names = trainable(model, settings.include, settings.exclude)
        if not names:
            raise UsageError("There is no weight to train: no float32 constant of a layer that `include` leaves over.")
        self._objective = _objective(model, teacher, settings, labels)
        if labels is not None:
            data = labelled(data, _encoded(model, self._objective, labels))
        self._data, self._held_out = data.split(settings.held_out)
        samples = count(self._data)
        self._size = min(settings.batch, samples) if data.divisible else 1
        self._per_epoch = samples // self._size
        arrays = {name: _array(model, name) for name in names}
        self._tensors = {name: tvm.runtime.tensor(array) for name, array in arrays.items()}
        self._arrays: dict[str, Array] = {name: np.from_dlpack(t) for name, t in self._tensors.items()}
        self._zeros = {name: array == 0 for name, array in arrays.items() if array.ndim > 1 and not array.all()}
        self._teacher = None
        if teacher is not None and self._objective.outputs:
            self._teacher = Session(teacher, list(self._objective.outputs), optimised=True)
        self._programs: dict[tuple[tuple[str, tuple[int, ...]], ...], Program] = {}
        self._order: list[str] = []

    def run(self) -> History:
        settings, history, start = self._settings, History(weights=len(self._arrays)), time.perf_counter()
        self._order = self._program(self._targets(next(self._batches(None)))).trained
        optimizer = Optimizer(settings.optimizer, [self._arrays[n] for n in self._order], settings.weight_decay)
        best = {name: array.copy() for name, array in self._arrays.items()}
        state = checkpoints.State(history, self._arrays, best, optimizer)
        checkpoints.resume(settings, self._seed, state)
        if not history.losses:
            history.losses.append(self._judge())
        first, worse = len(history.losses), len(history.losses) - 1 - history.best
        with meter("training", settings.epochs * self._per_epoch) as advance:
            advance((first - 1) * self._per_epoch, "")
            for epoch in range(first, settings.epochs + 1):
                if worse >= settings.patience:
                    history.stopped = f"no better epoch in {settings.patience}"
                    break
                history.trained.append(self._epoch(epoch, optimizer, history, advance))
                loss = self._judge()
                history.losses.append(loss)
                if loss < history.losses[history.best]:
                    history.best, worse = epoch, 0
                    for name, array in self._arrays.items():
                        best[name][:] = array
                else:
                    worse += 1
                if not math.isfinite(loss):
                    history.stopped = f"the loss of epoch {epoch} is not finite: lower lr"
                    break
                checkpoints.write(settings, self._seed, state)
        if history.best:
            put_back(self._model, best)
        history.steps = optimizer.steps
        history.seconds = time.perf_counter() - start
        return history

    def _epoch(self, epoch: int, optimizer: Optimizer, history: History, advance: Any) -> float:
        """One pass over the data; the mean loss."""
        settings, generator = self._settings, np.random.default_rng((self._seed, epoch))
        total, steps = 0.0, settings.epochs * self._per_epoch
        for k, feeds in enumerate(self._batches(generator)):
            if generator.random() < settings.mixup and _mixable(feeds):
                feeds = mixed(feeds, generator)
            feeds = self._targets(feeds)
            loss, gradients = self._program(feeds).step(self._tensors, feeds)
            if settings.keep_zeros:
                for name, gradient in zip(self._order, gradients, strict=True):
                    if name in self._zeros:
                        gradient[self._zeros[name]] = 0
            optimizer.update(gradients, settings.rate((optimizer.steps + 1) / steps))
            total += loss
            advance(1, f"epoch {epoch}, loss {total / (k + 1):.4g}, held out {history.losses[-1]:.4g}")
        return total / max(1, self._per_epoch)

    def _judge(self) -> float:
        """The mean loss on the held-out data."""
        losses: list[float] = []
        for feeds in minibatches(self._held_out, self._size, None):
            feeds = self._targets(feeds)
            losses.append(self._program(feeds).loss(self._tensors, feeds))
        return float(np.mean(losses))

    def _batches(self, generator: np.random.Generator | None) -> Iterator[Feeds]:
        return minibatches(self._data, self._size, generator)

    def _targets(self, feeds: Feeds) -> Feeds:
        """The feeds with what the teacher gives for them."""
        if self._teacher is None:
            return feeds
        outputs = self._teacher.run({name: array for name, array in feeds.items() if name != LABELS})
        return {**feeds, **{TEACHER + name: array for name, array in outputs.items()}}

    def _program(self, feeds: Feeds) -> Program:
        """The program for feeds of these shapes."""
        shapes = tuple((name, array.shape) for name, array in feeds.items())
        if shapes not in self._programs:
            while len(self._programs) >= PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[shapes] = Program(self._model, list(self._arrays), self._objective, feeds)
        return self._programs[shapes]


def _array(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return np.array(tensor.numpy(), np.float32)


def _mixable(feeds: Feeds) -> bool:
    return all(array.dtype.kind == "f" for array in feeds.values()) and len({len(a) for a in feeds.values()}) == 1


def _objective(model: ir.Model, teacher: ir.Model | None, settings: Settings, labels: Array | None) -> Objective:
    floats = [str(value.name) for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT]
    unknown = sorted(set(settings.outputs) - set(floats))
    if unknown:
        raise UsageError(f"`outputs`: the model has no output of floats named {', '.join(unknown)}; it has {floats}.")
    compared = settings.outputs or tuple(floats)
    if not compared:
        raise LoweringError("The model can't be trained: none of its outputs are float32.")
    follows = teacher is not None and settings.distil > 0
    if not follows and (labels is None or settings.task == 0):
        raise UsageError("Training needs something to follow: the original model (distil > 0), or labels (task > 0).")
    use_labels = labels is not None and settings.task > 0
    return Objective(
        outputs=compared if follows else (),
        distance=settings.distance,
        temperature=settings.temperature,
        weight=settings.distil,
        labelled=compared[0] if use_labels else None,
        labels="classes" if labels is not None and labels.dtype.kind in "iu" else "values",
        task=settings.task,
    )


def _encoded(model: ir.Model, objective: Objective, labels: Array) -> Array:
    """Labels as float32 of the output's type: classes one-hot along the last axis."""
    if objective.labels == "values" or objective.labelled is None:
        return labels.astype(np.float32)
    output = next(value for value in model.graph.outputs if value.name == objective.labelled)
    classes = output.shape[-1] if output.shape is not None else None
    if not isinstance(classes, int):
        raise DataError(f"Labels are classes, and how many `{output.name}` has is not known.")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(f"Labels run from {labels.min()} to {labels.max()}, and `{output.name}` has {classes} classes.")
    return np.eye(classes, dtype=np.float32)[labels]
