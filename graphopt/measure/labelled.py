"""A user's own labelled data as an `Evaluation`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from graphopt.data import Feeds, open_data
from graphopt.data.files import read_npz
from graphopt.data.source import fixed_batch
from graphopt.errors import DataError

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.data import Batches
    from graphopt.models.base import Evaluation

    Array = np.ndarray[Any, Any]

Metric: TypeAlias = Literal["accuracy", "agreement"]


def labelled(path: Path, model: ir.Model, metric: Metric = "accuracy", labels: str = "labels") -> Evaluation:
    """The samples of an .npz file: arrays named like the inputs of `model`, axis 0 counting samples.

    metric: "accuracy", the share of samples whose largest value in the model's first output (along its last axis) is
        at the label, an integer array called `labels`; "agreement", the same with what `model` itself says as the
        labels.

    Raises:
        DataError: no such file, no such labels, not as many as samples, or inputs that don't fit the model.
    """
    from graphopt.models.base import Evaluation

    arrays = read_npz(path)
    output = str(model.graph.outputs[0].name)
    truth = arrays.pop(labels, None)
    inputs = {str(value.name) for value in model.graph.inputs}
    batches = open_data({name: array for name, array in arrays.items() if name in inputs}, model)
    if metric == "agreement":
        return agreement(model, batches)
    if truth is None:
        raise DataError(f"{path} has no array {labels!r}; it has {', '.join(arrays)}. Name it with --labels.")
    if truth.dtype.kind not in "iu":
        raise DataError(f"the labels {labels!r} of {path} are {truth.dtype}; class numbers are needed.")
    answer = _of_whole_batches(np.atleast_1d(truth), arrays, model).reshape(-1)

    def score(outputs: Iterable[Feeds]) -> float:
        given = _answers(outputs)
        if len(given) != len(answer):
            raise DataError(f"{path} has {len(answer)} labels for {len(given)} answers of {output!r}.")
        return float((given == answer).mean())

    def feeds() -> Iterator[Feeds]:
        return iter(batches)

    return Evaluation("accuracy", len(answer), feeds, score)


def agreement(model: ir.Model, batches: Batches) -> Evaluation:
    """The share of samples whose largest value in the first output, along its last axis, is where `model` has it."""
    from graphopt.models.base import Evaluation
    from graphopt.oracle import Session

    session = Session(model)
    answer = _answers(session.run(feeds) for feeds in batches)

    def score(outputs: Iterable[Feeds]) -> float:
        given = _answers(outputs)
        if len(given) != len(answer):
            raise DataError(f"there are {len(given)} answers where the original gave {len(answer)}.")
        return float((given == answer).mean())

    return Evaluation("agreement", len(answer), lambda: iter(batches), score)


def _of_whole_batches(truth: Array, arrays: Feeds, model: ir.Model) -> Array:
    """The labels of the samples that a model of a fixed batch is run on: what does not fill a batch is left out."""
    size = fixed_batch(model.graph.inputs)
    if size is None or any(v.shape is not None and arrays[str(v.name)].ndim > len(v.shape) for v in model.graph.inputs):
        return truth  # no fixed batch, or each sample is a whole value
    return truth[: len(truth) - len(truth) % size]


def _answers(outputs: Iterable[Feeds]) -> Array:
    """The largest value's place along the last axis of each batch's first output."""
    return np.concatenate([np.asarray(next(iter(batch.values()))).argmax(axis=-1).reshape(-1) for batch in outputs])
