"""What precisions cost on a target: the times that the choice between integers and floats goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.graph.cost import macs
from graphopt.graph.provenance import sources
from graphopt.measure.by_node import Timed, by_call
from graphopt.measure.latency import bench
from graphopt.measure.profile import watch

if TYPE_CHECKING:
    from graphopt.artifact import Executable
    from graphopt.base import Target


class OnTarget:
    """Times of models compiled for `target`, on one thread and on `feeds`, whose sizes the open dimensions get."""

    def __init__(self, target: Target, feeds: Mapping[str, Any], seconds: float = 1.0) -> None:
        """`seconds`: how long a measurement takes."""
        self._target, self._feeds, self._seconds = target, feeds, seconds
        self._reference: Executable | None = None

    def time(self, model: ir.Model) -> float:
        """The model's time as a part of the first one's: the median over rounds in which both take their turn.

        Raises:
            LoweringError: it can't be compiled for the target.
        """
        program = self._compile(model)
        if self._reference is None:
            self._reference = program
            return 1.0
        runners = {"reference": self._reference.run, "model": program.run}
        return 1 / bench(runners, self._feeds, seconds=self._seconds)[1].ratio

    def gains(self, quantized: ir.Model, twin: ir.Model, names: Sequence[str]) -> dict[str, float]:
        """Milliseconds that the integer form of each node wins over its float form: the kernels of both models are
        timed, and the time of each is shared out over its nodes by multiply-accumulates. Raises as `time` does.
        """
        spent: list[dict[str, float]] = []
        for model in (quantized, twin):
            program = self._compile(model)
            runs, _ = watch(program, self._feeds, self._seconds)
            spent.append(shares(by_call(program, runs), model, names))
        return {name: spent[1][name] - spent[0][name] for name in names}

    def _compile(self, model: ir.Model) -> Executable:
        from graphopt.api import compile_result
        from graphopt.graph import bind_dims
        from graphopt.pipeline import Result

        copy = model.clone()
        sizes = {
            str(dim.value): self._feeds[str(value.name)].shape[axis]
            for value in copy.graph.inputs
            for axis, dim in enumerate(value.shape or ())
            if not isinstance(dim, int)
        }
        bind_dims(copy, sizes)
        return compile_result(copy, Result(copy, []), self._target, threads=1)


def shares(times: Timed, model: ir.Model, names: Sequence[str]) -> dict[str, float]:
    """Milliseconds of each of the nodes `names` of `model`, whose kernels took `times`."""
    owners: dict[str, list[ir.Node]] = {}
    wanted = set(names)
    for node in model.graph:
        if node.name in wanted:
            for source in sources(node):
                owners.setdefault(source, []).append(node)
    spent = dict.fromkeys(names, 0.0)
    for nodes, ms, _ in times:
        held = {node for source in nodes for node in owners.get(source, ())}
        weights = {node: macs(node) + 1 for node in held}
        for node, weight in weights.items():
            spent[str(node.name)] += ms * weight / sum(weights.values())
    return spent
