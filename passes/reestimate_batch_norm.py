"""BatchNormalization statistics taken anew."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.graph import add_constant, constant_array, remove_unused
from graphopt.passes.batch_norm.affine import of_batch_norm
from graphopt.passes.batch_norm.reading import Left, is_onnx
from graphopt.passes.correct.moments import moments
from graphopt.passes.correct.walk import Walk, sample
from graphopt.passes.weights import matches
from graphopt.progress import track

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ReestimateBatchNorm(Pass):
    """Sets the means and variances of BatchNormalization to those of its inputs on calibration data.

    samples: how many calibration samples to run at most; their activations are held in memory.
    momentum: the part of the old statistics that stays.
    include: node names, ``*`` allowed; all nodes by default.

    After weights changed (pruned, rounded), the statistics of training are those of another network. Each node gets
    ``mean = m mean + (1 - m) E[x]`` and ``var = m var + (1 - m) Var[x]`` per channel, in order of the graph, so that
    those behind see the ones before corrected. In terms of the weights that a fold makes of them, this is
    ``W_dynamic = W + dW`` with ``dW = gamma W (1 / sqrt(var' + eps) - 1 / sqrt(var + eps))`` (Sun et al. 2019, Hybrid
    8-bit Floating Point Training and Inference for Deep Neural Networks, re-tune them after
    quantization). Runs before fold-batch-norm; for biases after insert-qdq see correct-bias.
    """

    name: ClassVar[str] = "reestimate-batch-norm"
    preserves: ClassVar[Preserves] = LOSSY

    samples: Annotated[int, Field(ge=2)] = 128
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    include: tuple[str, ...] = ()

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Facts: `moved`, by node the largest move of a mean in units of the old deviation.

        Raises:
            DataError: no calibration data.
        """
        report = Report()
        nodes: list[ir.Node] = []
        for node in model.graph.all_nodes():
            if is_onnx(node, "BatchNormalization"):
                wanted = not self.include or matches(node, self.include)
                reason = _objection(node, model.graph) if wanted else "not included"
                if reason is None:
                    nodes.append(node)
                else:
                    report.skip(node.name, reason)
        feeds = sample(context.needs_calibration(self.name), self.samples)
        walk = Walk(model, feeds)
        for node in track(nodes, "Re-estimating statistics"):
            assert node.inputs[0] is not None
            mean, deviation = moments(walk.at(node.inputs[0]), 1)
            if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and deviation.any()):
                report.skip(node.name, "its input is constant or not finite on the calibration data")
                continue
            old_mean, old_variance = _statistics(node)
            new_mean = self.momentum * old_mean + (1 - self.momentum) * mean
            new_variance = self.momentum * old_variance + (1 - self.momentum) * deviation**2
            for index, array in ((3, new_mean), (4, new_variance)):
                _set(model.graph, node, index, array)
            worst = float((np.abs(new_mean - old_mean) / np.sqrt(np.maximum(old_variance, 1e-12))).max(initial=0.0))
            report.facts.setdefault("moved", {})[str(node.name)] = worst
            report.change(node.name, f"means moved by up to {worst:.2g} deviations")
        remove_unused(model)
        return report


def _objection(node: ir.Node, graph: ir.Graph) -> str | None:
    if node.graph is not graph:
        return "it is inside a subgraph"
    try:
        of_batch_norm(node)
    except Left as left:
        return str(left)
    if any(constant_array(node.inputs[index]) is None for index in (3, 4)):
        return "its statistics are not plain constants"
    return None


def _statistics(node: ir.Node) -> tuple[Array, Array]:
    mean, variance = (constant_array(node.inputs[index]) for index in (3, 4))
    assert mean is not None
    assert variance is not None
    return mean.astype(np.float64), variance.astype(np.float64)


def _set(graph: ir.Graph, node: ir.Node, index: int, array: Array) -> None:
    value = node.inputs[index]
    old = constant_array(value)
    assert value is not None
    assert old is not None
    node.replace_input_with(index, add_constant(graph, f"{value.name}_reestimated", array.astype(old.dtype)))
