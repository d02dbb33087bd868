"""Structured pruning: channels, neurons and attention heads are taken out, and what stays is refitted."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.data import Feeds
from graphopt.errors import DataError, UsageError
from graphopt.graph import add_constant, constant_array
from graphopt.graph.cost import ModelCost, cost
from graphopt.passes.channels.allocate import Budget, allocate
from graphopt.passes.channels.costs import Term, mac_terms, parameter_terms
from graphopt.passes.channels.cut import cut, kept_places
from graphopt.passes.channels.groups import Channels, Group, find_channels
from graphopt.passes.channels.observe import readers
from graphopt.passes.channels.recover import Places, recover
from graphopt.passes.channels.scores import NEEDS_DATA, Criterion, scores
from graphopt.passes.channels.sums import as_layers, as_sums
from graphopt.passes.channels.taylor import by_gradients
from graphopt.passes.correct.walk import sample
from graphopt.passes.weights import matches

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Takes whole channels out of the graph, those that matter least, and refits the weights that remain.

    ratio: the part of the channels that stays, in (0, 1]; 0.5 where nothing else is given.
    macs, parameters: instead, the parts of the model's multiply-accumulates and of its weights that stay.
    criterion: what matters. "reconstruction": the output power of the layers reading a channel that is lost when it
    goes and their weights are refitted; "activation": the output power that comes from it; "l1", "l2": the norm of the
    weights that make it; "geometric-median": its distance to the layer's other filters; "taylor": how much the
    outputs change without it, to first order, by TVM's gradients; "random": for comparison.
    allocation: "global": whichever channels matter least, per MAC or weight that goes with them where those count;
    "uniform": the same part of every group of channels.
    recover: refit the weights and biases of every layer behind on calibration data, least squares.
    steps: prune and refit this many times, in equal ratios.
    min_channels: no layer keeps fewer. round_to: numbers of channels are multiples of this where one is near.
    samples: how many calibration samples to run at most; their activations are held in memory.
    rows: about how many positions of a layer's input the refit looks at.
    include, exclude: node names or operators, ``*`` allowed: of the layers that make the channels.

    Channels that meet go together: the sides of a residual Add, a squeeze-excite's scale and what it scales, the H*W
    columns behind a Flatten, one embedding read by two layers. Graph inputs and outputs, and what mixes channels
    (Softmax and LayerNormalization along them, unknown operators), stay; the report says which layers those hold.
    """

    name: ClassVar[str] = "prune-channels"
    preserves: ClassVar[Preserves] = LOSSY

    ratio: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    macs: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    parameters: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    criterion: Criterion = "reconstruction"
    allocation: Literal["global", "uniform"] = "global"
    recover: bool = True
    steps: Annotated[int, Field(ge=1)] = 1
    min_channels: Annotated[int, Field(ge=1)] = 1
    round_to: Annotated[int, Field(ge=1)] = 8
    samples: Annotated[int, Field(ge=2)] = 256
    rows: Annotated[int, Field(ge=16)] = 8192
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ratio is not None and (self.macs, self.parameters) != (None, None):
            raise UsageError("'prune-channels': give either ratio, or macs, parameters or both, to say how much stays.")

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Facts: `groups`, by name the channels [before, after]; `macs` and `parameters` [before, after]; `error` by
        layer, see `graphopt.passes.channels.recover`.

        Raises:
            DataError: recover, or a criterion that looks at activations, without calibration data.
        """
        report = Report()
        feeds = self._feeds(context)
        _own_vectors(model)
        before = cost(model)
        sums = as_layers(model.graph) if self.recover else {}
        teacher = model.clone() if self.recover else None
        places: Places = {}
        sizes: dict[str, list[int]] = {}
        for step in range(1, self.steps + 1):
            channels = _selected(find_channels(model.graph), model.graph, self.include, self.exclude)
            if step == 1:
                for name, why in channels.fixed.items():
                    report.skip(name, why)
            keep = self._choose(model, channels, feeds, context.seed, step, before)
            _count(channels, keep, sizes)
            places = _compose(places, kept_places(channels, keep))
            cut(model, channels, keep)
            if teacher is not None:
                last = Report()
                recover(model, teacher, places, feeds, self.rows, context.seed, last)
                if step == self.steps:
                    report.changes += last.changes
                    report.skipped += last.skipped
                    report.facts |= last.facts
        as_sums(model.graph, sums)
        after = cost(model)
        for name, (old, new) in sizes.items():
            if old != new:
                report.change(name, f"{new} of {old} channels stay")
            if self.ratio is not None and round(self.ratio * old) < 1:
                report.skip(name, f"{self.ratio:g} of {old} channels is none: {new} stay, a layer is never emptied")
        report.facts["groups"] = sizes
        report.facts["macs"] = [before.macs, after.macs]
        report.facts["parameters"] = [before.parameters, after.parameters]
        return report

    def _feeds(self, context: Context) -> list[Feeds]:
        if not self.recover and self.criterion not in NEEDS_DATA:
            return []
        if context.calibration is None and self.recover:
            raise DataError(
                "prune-channels refits the remaining weights on calibration data and none was given: pass "
                "--calibration DATA (an .npz file or a directory of them), or calibration=... in Python; or prune "
                "without, by weights alone, and lose more accuracy: prune-channels{recover=false,criterion=l2}."
            )
        return sample(context.needs_calibration(self.name), self.samples)

    def _choose(
        self, model: ir.Model, channels: Channels, feeds: list[Feeds], seed: int, step: int, full: ModelCost
    ) -> Array:
        """The units that stay in this step: the k-th of n goes to the (k/n)-th power of the part asked for."""
        power, limits, ratio = step / self.steps, list[tuple[list[Term], float]](), None
        if self.macs is not None:
            limits.append((mac_terms(channels, model.graph), self.macs**power * full.macs))
        if self.parameters is not None:
            limits.append((parameter_terms(channels, model.graph), self.parameters**power * full.parameters))
        if not limits:
            ratio = (0.5 if self.ratio is None else self.ratio) ** (1 / self.steps)
        budget = Budget(ratio, limits, self.allocation, self.min_channels, self.round_to)
        if self.criterion == "taylor":
            return allocate(channels, by_gradients(model, channels, feeds, seed), budget)
        seen = readers(model, channels, feeds, seed, self.recover) if self.criterion in NEEDS_DATA else []
        return allocate(channels, scores(self.criterion, channels, seen, seed), budget)


def _own_vectors(model: ir.Model) -> None:
    """A vector that several nodes read (zeros for every bias, say) becomes one for each: they need not be alike."""
    for value in list(model.graph.initializers.values()):
        array = constant_array(value)
        if array is None or array.size != max(array.shape, default=1) or array.size == 1 or value.is_graph_output():
            continue
        if array.dtype.kind != "f":
            continue
        for node, index in list(value.uses())[1:]:
            if node.graph is model.graph:
                node.replace_input_with(index, add_constant(model.graph, str(value.name), array))


def _selected(channels: Channels, graph: ir.Graph, include: tuple[str, ...], exclude: tuple[str, ...]) -> Channels:
    """Only the groups whose makers the user wants pruned."""
    wanted: list[Group] = []
    nodes = {layer.node.name: layer for layer in channels.layers}
    for group in channels.groups:
        makers = [
            nodes[name].node
            for name in group.layers
            if (made := nodes[name].outputs) is not None and np.isin(group.units, made).any()
        ]
        if include and not any(matches(node, include) for node in makers):
            channels.fixed.setdefault(group.name, "not included")
        elif any(matches(node, exclude) for node in makers):
            channels.fixed.setdefault(group.name, "excluded")
        else:
            wanted.append(group)
    channels.groups[:] = wanted
    return channels


def _count(channels: Channels, keep: Array, sizes: dict[str, list[int]]) -> None:
    seen: dict[str, int] = {}
    for group in channels.groups:
        seen[group.name] = seen.get(group.name, 0) + 1
        name = group.name if seen[group.name] == 1 else f"{group.name}#{seen[group.name]}"
        old, new = len(group.units), int(keep[group.units].sum())
        sizes[name] = [sizes[name][0] if name in sizes else old, new]


def _compose(first: Places, then: Places) -> Places:
    """Indices of the original that stay after both."""
    found: Places = {name: list(axes) for name, axes in first.items()}
    for name, axes in then.items():
        old = found.get(name, [None] * len(axes))
        found[name] = [b if a is None else a if b is None else a[b] for a, b in zip(old, axes, strict=True)]
    return found
