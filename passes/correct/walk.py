"""Run a graph piece by piece in its own order, so that each part can be changed before what follows sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data import Batches, Feeds
from graphopt.graph import remove_unused
from graphopt.oracle import Session

Array = np.ndarray[Any, Any]


def sample(batches: Batches, samples: int) -> list[Feeds]:
    """The first `samples` samples, or as many batches where these can't be cut."""
    kept: list[Feeds] = []
    count = 0
    for feeds in batches.pieces(8):
        if count >= samples:
            break
        kept.append({name: array[: samples - count] if batches.divisible else array for name, array in feeds.items()})
        count += len(next(iter(feeds.values()))) if batches.divisible else 1
    return kept


class Walk:
    """`at(value)` gives the value for each of the `feeds`; every node runs once, with the weights it has by then.

    Values have to be asked for in order of the graph. Only what later nodes read is held.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feeds]) -> None:
        self._model = model
        self._order = list(model.graph)
        self._place = {node: i for i, node in enumerate(self._order)}
        self._computed = _computed(model.graph)
        self._done = 0
        self.held: list[Feeds] = [dict(f) for f in feeds]

    def at(self, value: ir.Value) -> list[Array]:
        """The value for each of the feeds. What is written into these arrays is what later nodes read."""
        name, producer = str(value.name), value.producer()
        if producer is not None and self._place[producer] >= self._done:
            self._run(value, self._place[producer] + 1)
        return [held[name] for held in self.held]

    def _run(self, target: ir.Value, stop: int) -> None:
        live = [v for v in self._computed if self._needed(v, stop)]
        wanted = list(dict.fromkeys([*live, target]))
        fresh = [str(v.name) for v in wanted if (p := v.producer()) is not None and self._place[p] >= self._done]
        part = self._part(fresh)
        inputs = {str(v.name) for v in part.graph.inputs}
        session, names = Session(part), {str(v.name) for v in wanted}
        for i, held in enumerate(self.held):
            results = session.run({name: array for name, array in held.items() if name in inputs})
            self.held[i] = {name: array for name, array in {**held, **results}.items() if name in names}
        self._done = stop

    def _part(self, outputs: Sequence[str]) -> ir.Model:
        """What computes the values `outputs` from those held."""
        graph = ir.convenience.extract(self._model.graph, list(self.held[0]), list(outputs))
        graph.inputs[:] = [v for v in graph.inputs if v.uses()]
        return ir.Model(graph, ir_version=self._model.ir_version, functions=list(self._model.functions.values()))

    def _needed(self, value: ir.Value, stop: int) -> bool:
        """Is `value` known before place `stop` and read at or after it?"""
        producer = value.producer()
        known = producer is None or self._place[producer] < stop
        return known and any(self._place.get(node, stop) >= stop for node in value.consumers())  # subgraphs: always


def _computed(graph: ir.Graph) -> list[ir.Value]:
    """Values that depend on the graph's inputs, in order."""
    found: dict[ir.Value, None] = dict.fromkeys(graph.inputs)
    for node in graph:
        control = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
        if control or any(v in found for v in node.inputs):
            found.update(dict.fromkeys(v for v in node.outputs if v.name))
    return list(found)


def segment(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """A copy of the part of `model` that computes the values `outputs` from the values `inputs`."""
    part = model.clone()
    values = {v.name: v for v in [*part.graph.inputs, *(v for n in part.graph for v in n.outputs)]}
    given = {str(v.name): v for v in part.graph.inputs}
    part.graph.outputs[:] = [values[name] for name in outputs]
    for name in inputs:
        if name in given:
            continue
        cut = values[name]
        cut.name = f"{name}_computed"
        given[name] = ir.val(name, type=cut.type, shape=cut.shape)
        for node, index in cut.uses():
            node.replace_input_with(index, given[name])
    part.graph.inputs[:] = given.values()
    remove_unused(part)
    part.graph.inputs[:] = [v for v in part.graph.inputs if v.uses()]
    return part
