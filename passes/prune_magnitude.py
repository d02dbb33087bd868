"""Weights set to zero, alone or in patterns: ``W_pruned = W * mask``, and the rest refitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.data import Feeds
from graphopt.errors import UsageError
from graphopt.graph import remove_unused
from graphopt.passes.correct.walk import sample
from graphopt.passes.reestimate_batch_norm import ReestimateBatchNorm
from graphopt.passes.sparsity.allocate import by_sensitivity, by_threshold
from graphopt.passes.sparsity.layers import Layer, find
from graphopt.passes.sparsity.patterns import Pattern, parse, zeros
from graphopt.passes.sparsity.recover import Schedule, recover
from graphopt.passes.sparsity.scores import NEEDS_DATA, Criterion, by_input, by_weight

Array = np.ndarray[Any, Any]

STEPS = 4
"""In which a layer is pruned and refitted, where nothing is said."""


@dataclass(frozen=True)
class PruneMagnitude(Pass):
    """Sets the weights that matter least to zero, and refits the others where there is calibration data.

    sparsity: fraction of the weights to zero, in [0, 1); 0.5 unless the pattern fixes it.
    scope: "layer": the same fraction of each weight tensor; "global": one threshold for all; "sensitivity": shared out
    such that the model's outputs change least, measured on calibration data. No tensor is emptied.
    pattern: "unstructured"; "N:M": of each M neighbours along the input channels the N best stay; or "RxC": blocks of R
    input and C output channels go together (1x16, 4x4).
    criterion: "l1", "l2": magnitude, a block's by that norm; "activation": times the norm of its input (Wanda); "obs":
    the error it leaves after the others made up for it (Optimal Brain Surgeon); "random": the baseline. By default obs
    where weights are refitted, else l2.
    recover: refit the weights that stay, layer by layer, so that each layer gives what it gave, and take statistics of
    BatchNormalization anew. By default where there is calibration data; true asks for it.
    steps: in how many steps a layer is pruned, each refitted before the next; 4 by default, 1 without refits.
    samples, rows: how many calibration samples are run, and positions of a layer's input used, at most.
    include, exclude: node names or operators, ``*`` allowed; all weighted nodes are included by default.

    Weights are the constant operands of Conv, ConvTranspose, Gemm and MatMul; biases and normalisation are left
    alone. A tensor that several nodes share is one tensor: counted and masked once, seen masked by all of them,
    and excluded when one of them is. Shapes stay; the llvm target has kernels for the zeros, and an artifact leaves
    them out.
    """

    name: ClassVar[str] = "prune-magnitude"
    preserves: ClassVar[Preserves] = LOSSY

    sparsity: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    scope: Literal["layer", "global", "sensitivity"] = "layer"
    pattern: str = "unstructured"
    criterion: Criterion | None = None
    recover: bool | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    samples: Annotated[int, Field(ge=2)] = 128
    rows: Annotated[int, Field(ge=16)] = 8192
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pattern = parse(self.pattern)
        if pattern is None:
            raise UsageError(
                "'prune-magnitude': pattern must be unstructured, N:M with 0 < N < M, or RxC with blocks of R input "
                f"and C output channels, not {self.pattern!r}."
            )
        if pattern.fixes and (self.sparsity is not None or self.scope != "layer"):
            raise UsageError(
                f"'prune-magnitude': the pattern {self.pattern} fixes what is kept of every {pattern.group} weights, "
                "so sparsity and another scope than layer can't be given with it."
            )

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Prune in place; facts: `sparsity` by tensor, `zeros` and `weights` over all of them, and `error`, by node the
        part of its output's power that is missed with the mask alone and after the refit.

        Raises:
            DataError: recover=true, a criterion or scope that looks at activations, without calibration data.
        """
        report = Report()
        pattern = parse(self.pattern)
        assert pattern is not None
        remove_unused(model)  # weights of what nobody reads count for nothing
        layers = find(model, pattern, self.include, self.exclude, report)
        feeds = self._feeds(context)
        refitted = bool(feeds) and self.recover is not False
        criterion = self.criterion or ("obs" if refitted else "l2")
        plan = _Plan(pattern, criterion, context.seed, {})
        for layer, share in zip(layers, self._shares(model, layers, plan, feeds), strict=True):
            plan.sparsity[layer.name] = share
        watched: list[Layer] = []
        for layer in layers:
            reason = layer.refused(model.graph) if refitted or criterion in NEEDS_DATA else "unwatched"
            if reason is None:
                watched.append(layer)
                continue
            scores = by_weight(criterion, layer.array, layer.name, plan.seed)
            layer.put(np.where(plan.zeros(scores, layer), 0, layer.array))
            if reason != "unwatched":
                report.skip(layer.weights[0].node.name, f"pruned by magnitude and not refitted: {reason}")
        errors: Mapping[str, list[float]] = {}
        if watched:
            how = Schedule(
                zeros=lambda scores, done, layer: plan.zeros(scores, layer, done),
                score=lambda fit, v, layer: by_input(criterion, fit, v, layer.name, plan.seed),
                steps=self.steps or (STEPS if refitted else 1),
                rows=self.rows,
                refit=refitted,
                seed=context.seed,
            )
            errors = recover(model, watched, feeds, how, report)
        behind = _norms_behind(layers) if refitted else ()
        if behind:
            after = ReestimateBatchNorm(samples=self.samples, include=behind).apply(model, context)
            report.changes += after.changes
        remove_unused(model)
        _account(layers, errors, report)
        return report

    def _feeds(self, context: Context) -> list[Feeds]:
        """Calibration data where it is given or needed."""
        needed = self.recover or self.criterion in NEEDS_DATA or self.scope == "sensitivity"
        if not needed and (context.calibration is None or self.recover is False):
            return []
        return sample(context.needs_calibration(self.name), self.samples)

    def _shares(self, model: ir.Model, layers: list[Layer], plan: _Plan, feeds: list[Feeds]) -> list[float]:
        """The sparsity of each layer."""
        sparsity = 0.5 if self.sparsity is None else self.sparsity
        if self.scope == "global":
            scores = [by_weight(plan.criterion, layer.array, layer.name, plan.seed) for layer in layers]
            return by_threshold(layers, scores, plan.pattern, sparsity)
        if self.scope == "sensitivity":
            return by_sensitivity(model, layers, plan.pattern, sparsity, feeds, plan.seed)
        return [sparsity] * len(layers)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What goes from each layer, by its name."""

    pattern: Pattern
    criterion: Criterion
    seed: int
    sparsity: dict[str, float]

    def zeros(self, scores: Array, layer: Layer, done: float = 1.0) -> Array:
        """True where weights go; the sparsity on the way is ``s (1 - (1 - done)^3)`` (Zhu and Gupta 2017)."""
        pattern, part = self.pattern, 1 - (1 - done) ** 3
        if pattern.fixes:
            gone = round((pattern.group - pattern.keep) * part)
            pattern = dataclasses.replace(pattern, keep=pattern.group - gone)
        norm = "l1" if self.criterion == "l1" else "l2"
        return zeros(scores, pattern, self.sparsity[layer.name] * part, layer.axes, norm)


def _norms_behind(layers: list[Layer]) -> tuple[str, ...]:
    """The BatchNormalizations that see what these layers give."""
    todo = [weight.node for layer in layers for weight in layer.weights]
    met = set(todo)
    while todo:
        fresh = {reader for value in todo.pop().outputs for reader in value.consumers()} - met
        met |= fresh
        todo += fresh
    names = sorted(str(node.name) for node in met if node.op_type == "BatchNormalization")
    return tuple(name.replace("[", "[[]") for name in names)


def _account(layers: list[Layer], errors: Mapping[str, list[float]], report: Report) -> None:
    """Changes, facts, and a warning for each layer of which next to nothing is left."""
    counts: dict[str, tuple[int, int]] = {}
    for layer in layers:
        array = layer.array
        counts[layer.name] = gone, size = int(array.size - np.count_nonzero(array)), int(array.size)
        for weight in layer.weights:
            name = str(weight.node.name)
            missed = errors.get(name)
            more = "" if missed is None else f"; misses {missed[1]:.2%} of its output's power, masked {missed[0]:.2%}"
            report.change(name, f"{gone} of {size} weights in {layer.name!r} are zero{more}")
        axis = layer.axes[1]
        if axis is not None:
            dead = int((~np.any(array != 0, axis=tuple(k for k in range(array.ndim) if k != axis))).sum())
            if dead:
                warning = f"warning: {dead} of {array.shape[axis]} outputs of {layer.name!r} have no weight left"
                report.skip(layer.weights[0].node.name, warning)
    report.facts["sparsity"] = {name: gone / size for name, (gone, size) in counts.items()}
    report.facts["zeros"] = sum(gone for gone, _ in counts.values())
    report.facts["weights"] = sum(size for _, size in counts.values())
    if errors:
        report.facts["error"] = dict(errors)
