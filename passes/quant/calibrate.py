"""Run calibration data through the model and gather statistics of chosen values."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.data import Batches
from graphopt.graph import constant_array
from graphopt.passes.quant.observers import Statistics
from graphopt.progress import track

PIECE = 8
"""Samples that run at once where batches may be cut: the tapped activations of a piece are held together."""


def calibrate(model: ir.Model, values: Sequence[ir.Value], batches: Batches) -> dict[ir.Value, Statistics]:
    """Statistics of each of `values` (of the main graph, float) over all of `batches`.

    Memory does not grow with the number of batches: each is run through onnxruntime with the values as further
    outputs, taken into the statistics, and dropped. Constants and graph inputs are read as they are.
    """
    from graphopt.oracle import Session

    statistics = {value: Statistics() for value in values}
    taps: list[ir.Value] = []
    for value in values:
        array = constant_array(value)
        if array is not None:
            statistics[value].update(array)
        elif not value.is_graph_input():
            taps.append(value)
    inputs = [value for value in values if value.is_graph_input()]
    session = Session(model, [str(value.name) for value in taps]) if taps else None
    for feeds in track(batches.pieces(PIECE), "Calibrating"):
        for value in inputs:
            statistics[value].update(feeds[str(value.name)])
        results = session.run(feeds) if session is not None else {}
        for value in taps:
            statistics[value].update(results[str(value.name)])
    return statistics
