"""Cross-layer equalization of weight ranges."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import Context, Pass, Preserves, Report, tolerance
from graphopt.graph import add_constant, constant_array, remove_unused
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.correct.pairs import Pair, by_input, by_output, find_pair

Array = np.ndarray[Any, Any]

DEAD = 1e-4
"""Channels with a smaller share of the largest range stay: what they carry is their bias, which would grow."""
SETTLED = 1e-3
"""Sweeps end when no factor differs from 1 by more."""


@dataclass(frozen=True)
class EqualizeChannels(Pass):
    """Gives neighbouring layers channels of equal ranges, so that one scale for all of them loses little.

    sweeps: how often all pairs are gone through at most.

    For two layers with only operators between them for which ``f(s x) = s f(x)`` (Relu, LeakyRelu, pools), channel i
    may be divided by s_i in the first and multiplied by it in the second. ``s_i = sqrt(r1_i r2_i) / r2_i``, with r1_i
    the range of the weights that make channel i and r2_i of those that read it, makes both ``sqrt(r1_i r2_i)``
    (Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.1). Chains,
    depthwise convolutions among them, are swept until nothing moves. Each layer must be read by the next one alone:
    residual branches and outputs of the graph are left, and so is ReLU6: its bound would
    not move with a channel. Runs after fold-batch-norm and before insert-qdq.
    """

    name: ClassVar[str] = "equalize-channels"
    preserves: ClassVar[Preserves] = tolerance(rtol=1e-4, atol=1e-6)

    sweeps: Annotated[int, Field(ge=1)] = 30

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Facts: `spread`, by first layer, the largest over the smallest range of its channels before and after."""
        report = Report()
        pairs = _find(model.graph, report)
        arrays = {node: _weight(node).copy() for pair in pairs for node in (pair.first, pair.second)}
        before = [_spread(by_output(pair.first, arrays[pair.first])) for pair in pairs]
        total = [np.ones(len(by_output(pair.first, arrays[pair.first]))) for pair in pairs]
        for _ in range(self.sweeps):
            moved = 0.0
            for pair, factors in zip(pairs, total, strict=True):
                moved = max(moved, _equalize(pair, arrays, factors))
            if moved < SETTLED:
                break
        for pair, factors, old in zip(pairs, total, before, strict=True):
            _divide_bias(model.graph, pair.first, factors)
            new = _spread(by_output(pair.first, arrays[pair.first]))
            report.facts.setdefault("spread", {})[str(pair.first.name)] = [old, new]
            report.change(
                pair.first.name, f"equalized with {pair.second.name}: ranges 1 : {old:.0f} became 1 : {new:.0f}"
            )
        for node, array in arrays.items():
            hint = f"{node.inputs[1].name}_equalized"  # pyright: ignore[reportOptionalMemberAccess]
            node.replace_input_with(1, add_constant(model.graph, hint, array.astype(np.float32)))
        remove_unused(model)
        return report


def _find(graph: ir.Graph, report: Report) -> list[Pair]:
    pairs: list[Pair] = []
    for node in graph:
        if not is_onnx(node, "Conv", "Gemm"):
            continue
        found = find_pair(node)
        if isinstance(found, str):
            report.skip(node.name, found)
        else:
            pairs.append(found)
    return pairs


def _weight(node: ir.Node) -> Array:
    array = constant_array(node.inputs[1])
    assert array is not None
    return array.astype(np.float64)


def _equalize(pair: Pair, arrays: dict[ir.Node, Array], total: Array) -> float:
    """One step for one pair, in place; returns how far the factors are from 1."""
    first = by_output(pair.first, arrays[pair.first])
    second = by_input(pair.second, arrays[pair.second])
    r1 = np.abs(first).reshape(len(first), -1).max(axis=1)
    r2 = np.abs(second).reshape(*second.shape[:2], -1).max(axis=2).reshape(-1)
    alive = (r1 > DEAD * r1.max()) & (r2 > DEAD * r2.max())
    s = np.where(alive, np.sqrt(np.where(alive, r1, 1.0) / np.where(alive, r2, 1.0)), 1.0)
    first /= s.reshape(-1, *[1] * (first.ndim - 1))
    second *= s.reshape(*second.shape[:2], *[1] * (second.ndim - 2))
    total *= s
    return float(np.abs(s - 1).max(initial=0.0))


def _divide_bias(graph: ir.Graph, node: ir.Node, factors: Array) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant_array(bias)
    if bias is not None and array is not None:
        node.replace_input_with(2, add_constant(graph, f"{bias.name}_equalized", (array / factors).astype(np.float32)))


def _spread(channels: Array) -> float:
    ranges = np.abs(channels).reshape(len(channels), -1).max(axis=1)
    ranges = ranges[ranges > 0]
    return float(ranges.max() / ranges.min()) if ranges.size else 1.0
