"""How much noise quantization puts on each node, alone and together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data import Batches, Feeds
from graphopt.noise import Sums, decibels
from graphopt.oracle import Session
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.correct.twin import float_twin
from graphopt.passes.correct.walk import sample, segment
from graphopt.progress import track

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Noise:
    """Signal to noise in dB, ``10 log10(sum y^2 / sum (y - y~)^2)``, with y the float model's value.

    `alone`: the node's own output, its inputs and weights quantized from the float model's values.
    `accumulated`: the node's own output in the quantized model, with the errors of all nodes before it.
    `output`: the model's outputs (the mean over them of the noise) when this node alone is quantized.
    """

    node: str
    op: str
    alone: float
    accumulated: float
    output: float


def sensitivity(model: ir.Model, batches: Batches, samples: int = 32, who: str = "sensitivity") -> list[Noise]:
    """The noise of every node of a quantized `model` that reads dequantized values, in order of the graph.

    `model` is as a pipeline with insert-qdq left it, with its float weights still known. At most `samples` samples
    are run, a few at a time.

    Raises:
        PassError: the float weights are not known: the model comes from a file.
    """
    nodes = integer_nodes(model.graph)
    feeds = sample(batches, samples)
    twin = float_twin(model, who)
    if not nodes:
        return []
    alone, accumulated = _at_nodes(model, twin, nodes, feeds)
    wanted = [Session(twin).run(piece) for piece in feeds]
    noises: list[Noise] = []
    for node, a, b in track(list(zip(nodes, alone, accumulated, strict=True)), "Quantizing one node at a time"):
        session = Session(float_twin(model, who, keep={str(node.name)}))
        output = _output_noise(wanted, (session.run(piece) for piece in feeds))
        noises.append(Noise(str(node.name), node.op_type, a, b, output))
    return noises


def integer_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Named nodes that read a dequantized value."""
    return [node for node in graph if node.name and _reads_integers(node)]


def _reads_integers(node: ir.Node) -> bool:
    if is_onnx(node, "QuantizeLinear", "DequantizeLinear"):
        return False
    producers = [value.producer() for value in node.inputs if value is not None]
    return any(producer is not None and is_onnx(producer, "DequantizeLinear") for producer in producers)


def _at_nodes(
    model: ir.Model, twin: ir.Model, nodes: Sequence[ir.Node], feeds: Sequence[Feeds]
) -> tuple[list[float], list[float]]:
    """`alone` and `accumulated` of each node: the quantized model with and without float values put in before each
    QuantizeLinear.
    """
    names = [str(node.outputs[0].name) for node in nodes]
    inputs = {str(v.name) for v in model.graph.inputs}
    cuts = dict.fromkeys(
        str(n.inputs[0].name) for n in model.graph if is_onnx(n, "QuantizeLinear") and n.inputs[0] is not None
    )
    part = segment(model, [name for name in cuts if name not in inputs], names)
    reads = [str(v.name) for v in part.graph.inputs]
    computed = [str(v.name) for v in part.graph.outputs]
    cut, whole = Session(part), Session(model, names)
    exact = Session(twin, list(dict.fromkeys([*names, *(r for r in reads if r not in inputs)])))
    sums = np.zeros((2, len(nodes), 2))
    for piece in track(feeds, "Comparing activations"):
        want = exact.run(piece)
        given = {**piece, **want}
        one, all_ = cut.run({name: given[name] for name in reads}), whole.run(piece)
        for i, (name, out) in enumerate(zip(names, computed, strict=True)):
            sums[0, i] += _powers(want[name], one[out])
            sums[1, i] += _powers(want[name], all_[name])
    alone, accumulated = ([decibels(*row) for row in half] for half in sums)
    return alone, accumulated


def _powers(want: Array, got: Array) -> Array:
    sums = Sums()
    sums.add(want, got)
    return np.array([sums.signal, sums.noise])


def _output_noise(wanted: Iterable[Mapping[str, Array]], got: Iterable[Mapping[str, Array]]) -> float:
    sums: dict[str, Array] = {}
    for want, have in zip(wanted, got, strict=True):
        for name, array in want.items():
            if array.dtype.kind in "fiub":
                sums[name] = sums.get(name, np.zeros(2)) + _powers(array, have[name])
    return decibels(1.0, float(np.mean([10 ** (-decibels(*pair) / 10) for pair in sums.values()])) if sums else 0.0)
