"""Run calibration data through the model and gather statistics of chosen values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data import Batches
from graphopt.graph import constant_array
from graphopt.passes.quant.observers import Statistics
from graphopt.progress import track

Array = np.ndarray[Any, Any]
PIECE = 8
"""Samples that run at once where batches may be cut: the tapped activations of a piece are held together."""


def calibrate(model: ir.Model, values: Sequence[ir.Value], batches: Batches) -> dict[ir.Value, Statistics]:
    """Statistics of each of `values` (of the main graph, float) over all of `batches`; constants as they are."""
    statistics = {value: Statistics() for value in values}
    for value in values:
        constant = constant_array(value)
        if constant is not None:
            statistics[value].update(constant)
    for value, array in stream(model, [v for v in values if constant_array(v) is None], batches):
        statistics[value].update(array)
    return statistics


def stream(model: ir.Model, values: Sequence[ir.Value], batches: Batches) -> Iterator[tuple[ir.Value, Array]]:
    """Each of `values` (of the main graph, computed at run time) on each batch: the pairs come batch by batch.

    Batches may differ in size and in all open dimensions. Memory does not grow with their number: each is run through
    onnxruntime with the values as further outputs, and dropped.
    """
    from graphopt.oracle import Session

    taps = [value for value in values if not value.is_graph_input()]
    session = Session(model, [str(value.name) for value in taps]) if taps else None
    for feeds in track(batches.pieces(PIECE), "Calibrating"):
        results = feeds | (session.run(feeds) if session is not None else {})
        for value in values:
            yield value, results[str(value.name)]
