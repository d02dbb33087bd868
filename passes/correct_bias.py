"""Bias correction after quantization."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.data import Feeds
from graphopt.graph import remove_unused
from graphopt.oracle import Session
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.correct.bias import channel_axis, shift_bias
from graphopt.passes.correct.moments import from_sums, moments, sums
from graphopt.passes.correct.twin import float_twin
from graphopt.passes.correct.walk import Walk, sample
from graphopt.passes.weights import is_weighted
from graphopt.progress import track

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Moves biases so that quantized layers have the mean outputs of the float ones on calibration data.

    samples: how many calibration samples to run at most; their activations are held in memory.

    Rounding weights and activations shifts a layer's mean output, and the layers behind it see the shift as a
    bias: ``b += E[y] - E[y~]`` per channel undoes it, with y the float output and y~ the quantized one (Nagel et
    al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.2, the empirical
    form). Layers are corrected in order of the graph, each seeing the corrected ones before it. A bias stored as
    int32 is rounded anew at the same scale; a MatMul's goes into the Add behind it. Runs after insert-qdq, in the
    same pipeline: it compares with the float model.
    """

    name: ClassVar[str] = "correct-bias"
    preserves: ClassVar[Preserves] = LOSSY

    samples: Annotated[int, Field(ge=1)] = 64

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Facts: `shifts`, by node the largest shift of a channel in units of the float output's deviation.

        Raises:
            DataError: no calibration data.
            PassError: the float weights are not known: the model was quantized elsewhere.
        """
        feeds = sample(context.needs_calibration(self.name), self.samples)
        report = Report()
        nodes = [node for node in model.graph if is_weighted(node) and _reads_integers(node)]
        shifts: dict[str, float] = {}
        means = _float_moments(float_twin(model, self.name), nodes, feeds) if nodes else {}
        walk = Walk(model, feeds)
        for node in track(nodes, "Correcting biases"):
            axis = channel_axis(node)
            outputs = walk.at(node.outputs[0])
            mean, deviation = means[str(node.outputs[0].name)]
            shift = mean - moments(outputs, axis)[0]
            done = shift_bias(model.graph, node, shift) if np.isfinite(shift).all() else "it is not finite"
            if isinstance(done, str):
                report.skip(node.name, done)
                continue
            added, own = done
            if own:
                for array in outputs:
                    array += added.reshape([-1 if i == axis % array.ndim else 1 for i in range(array.ndim)])
            worst = float((np.abs(added) / np.maximum(deviation, np.finfo(np.float32).tiny)).max(initial=0.0))
            shifts[str(node.name)] = worst
            report.change(node.name, f"bias moved by up to {worst:.2g} deviations of a channel")
        remove_unused(model)
        report.facts["shifts"] = shifts
        return report


def _reads_integers(node: ir.Node) -> bool:
    producers = [v.producer() for v in node.inputs[:2] if v is not None]
    return any(p is not None and is_onnx(p, "DequantizeLinear") for p in producers)


def _float_moments(twin: ir.Model, nodes: list[ir.Node], feeds: list[Feeds]) -> dict[str, tuple[Array, Array]]:
    """Mean and deviation per channel of each node's output in the float model."""
    names = [str(node.outputs[0].name) for node in nodes]
    session = Session(twin, names)
    total: dict[str, Array] = {}
    for piece in feeds:
        results = session.run(piece)
        for node, name in zip(nodes, names, strict=True):
            total[name] = total.get(name, 0) + sums(results[name], channel_axis(node))
    return {name: from_sums(sum_) for name, sum_ in total.items()}
