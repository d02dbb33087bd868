"""Fitting a student by its gradients: built from the region's graph, trained on the region's inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphopt.data import Batches, Feeds
from graphopt.errors import GraphoptError
from graphopt.oracle import Session
from graphopt.passes.correct.walk import segment
from graphopt.passes.distil.builders import BUILDERS, Teacher, load_builder
from graphopt.passes.distil.region import Region
from graphopt.passes.distil.student import UnsupportedError


def train(
    model: ir.Model, region: Region, kind: str, data: Batches, budget: float, epochs: int, lr: float, seed: int
) -> ir.Model:
    """The student of `kind` for `region`, trained toward its outputs on what `model` feeds it for `data`.

    Raises:
        UnsupportedError: the region has nothing of that kind, or the student can't be trained.
    """
    from graphopt.training.fit import fit
    from graphopt.training.settings import Settings

    (x,), (y,) = region.inputs, region.outputs
    alone = segment(model, [str(x.name)], [str(y.name)])
    inputs = _inputs(model, x, data)
    build = BUILDERS[kind] if kind in BUILDERS else load_builder(kind)
    student = build(Teacher(alone, inputs, budget, seed))
    settings = Settings(epochs=epochs, lr=lr, batch=16, keep_zeros=kind in BUILDERS)  # a new student may begin at zero
    try:
        fit(student, alone, inputs, settings, seed=seed)
    except GraphoptError as error:
        raise UnsupportedError(f"it can't be trained: {error}") from error
    return student


def _inputs(model: ir.Model, x: ir.Value, data: Batches) -> Batches:
    """What the region reads, batch by batch."""
    name = str(x.name)
    if x.is_graph_input():
        return Batches(lambda: ({name: feeds[name]} for feeds in data), divisible=data.divisible)
    open_size = x.shape is not None and x.shape.rank() > 0 and x.shape.is_dynamic(0)
    session = Session(model, [name])

    def make() -> Iterator[Feeds]:
        for feeds in data:
            yield {name: session.run(feeds)[name]}

    return Batches(make, divisible=data.divisible and open_size)
