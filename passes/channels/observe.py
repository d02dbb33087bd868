"""What the layers that read prunable channels see of them on calibration data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.data import Feeds
from graphopt.oracle import Session
from graphopt.passes.channels.groups import Channels, Layer
from graphopt.passes.correct.bias import channel_axis
from graphopt.passes.correct.rows import data_index, sample_rows
from graphopt.passes.distil.moments import Moments
from graphopt.progress import track

Array: TypeAlias = np.ndarray[Any, Any]

PATCHES = 1152
"""Most entries of a convolution's patch for which their full covariance is taken; else that of the channels is."""
CHANNELS = 2048
"""Most columns for which a full covariance is taken; else only the powers are."""
DAMPING = 1e-3
"""Of the mean power of a column, added to all of them before they are inverted."""
FEW = 0.5
SCARCE = 0.1
"""Columns / rows beyond which more is added, and how much: few rows make every column look redundant."""
ROWS = 16384
"""About how many positions of a layer's input are looked at, over all samples."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """A layer ``y = W x`` that reads prunable channels, its columns in order of the channels.

    `units`: the unit of each column. `second`: ``E[x x^T]`` or its diagonal; `weights`: ``W^T W`` or its diagonal.
    `energy`: ``tr(W E[x x^T] W^T)``, the power of its output. `rows`: how many x were seen.
    """

    name: str
    units: Array
    second: Array
    weights: Array
    energy: float
    rows: int

    @functools.cached_property
    def inverse(self) -> Array:
        """``(E[x x^T] + damping)^-1`` of a reader that is full."""
        part = DAMPING + SCARCE * max(len(self.second) / max(self.rows, 1) - FEW, 0.0)
        damping = part * max(float(np.diagonal(self.second).mean()), 1e-30)
        return np.linalg.inv(self.second + damping * np.eye(len(self.second)))

    @property
    def is_full(self) -> bool:
        """Are the products of different columns known?"""
        return self.second.ndim == 2


def readers(model: ir.Model, channels: Channels, feeds: Sequence[Feeds], seed: int, centred: bool) -> list[Reader]:
    """All layers that sum over prunable channels. `centred`: about the mean, for a bias can make up for the mean."""
    prunable = np.zeros(channels.count, bool)
    for group in channels.groups:
        prunable[group.units] = True
    found = [layer for layer in channels.layers if _reads(layer, prunable)]
    if not found:
        return []
    session = Session(model, list(dict.fromkeys(str(layer.node.inputs[0].name) for layer in found)))  # pyright: ignore[reportOptionalMemberAccess]
    seen = [_Seen(layer) for layer in found]
    share = -(-ROWS // len(feeds))
    for piece in track(feeds, "Observing channels"):
        values = session.run(piece)
        for one in seen:
            one.add(values[str(one.layer.node.inputs[0].name)], share, seed)  # pyright: ignore[reportOptionalMemberAccess]
    return [one.reader(centred) for one in seen]


def _reads(layer: Layer, prunable: Array) -> bool:
    if layer.inputs is None or not prunable[layer.inputs].any():
        return False
    return layer.node.op_type == "ConvTranspose" or not isinstance(data_index(layer.node, layer.index), str)


class _Seen:
    """Moments of a layer's input rows: of whole patches, of channels, or the powers of channels alone."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        assert layer.input_axis is not None
        assert layer.inputs is not None
        moved = np.moveaxis(layer.weight, layer.input_axis, 0).astype(np.float64)
        self.channels = moved.shape[0]
        self.taps = int(np.prod(layer.weight.shape[2:])) if layer.node.op_type == "Conv" else 1
        self.patches = self.taps > 1 and self.channels * self.taps <= PATCHES
        # columns: channels, then taps; rows: outputs (and taps, where columns are channels alone)
        if self.patches:
            matrix = (
                moved.reshape(self.channels, -1, self.taps).transpose(1, 0, 2).reshape(-1, self.channels * self.taps)
            )
        else:
            matrix = moved.reshape(self.channels, -1).T
        self.columns = matrix.shape[1]
        self.full = self.columns <= CHANNELS
        self.weights = matrix.T @ matrix if self.full else np.square(matrix).sum(axis=0)
        self.units = np.repeat(layer.inputs, self.columns // self.channels)
        self.moments = Moments(self.columns) if self.full else None
        self.sums = np.zeros((3, self.columns))

    def add(self, x: Array, rows: int, seed: int) -> None:
        """Take in a batch of the layer's input."""
        if self.patches:
            (part,) = sample_rows(self.layer.node, self.layer.weight.shape, [[x]], rows, seed)
            drawn = part[0]
        else:
            flat = np.moveaxis(x, channel_axis(self.layer.node), -1).reshape(-1, self.columns)
            chosen = np.random.default_rng(seed).choice(len(flat), min(rows, len(flat)), replace=False)
            drawn = flat[chosen].astype(np.float64)
        if self.moments is not None:
            self.moments.add(drawn)
        else:
            self.sums += np.stack([np.full(self.columns, len(drawn)), drawn.sum(axis=0), np.square(drawn).sum(axis=0)])

    def reader(self, centred: bool) -> Reader:
        """What was seen."""
        if self.moments is not None:
            second = self.moments.covariance if centred else self.moments.about(np.zeros(self.columns))
            rows = self.moments.count
        else:
            count, first, second = self.sums
            second = second / count - (np.square(first / count) if centred else 0.0)
            rows = int(count[0])
        energy = max(float((self.weights * second).sum()), 1e-30)
        return Reader(str(self.layer.node.name), self.units, second, self.weights, energy, rows)
