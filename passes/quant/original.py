"""The float tensor behind a quantized constant, for the passes that follow in the same pipeline.

It hangs on the DequantizeLinear node and is not saved: a file holds the integers alone. What came from a file beside
the model is read from there again (see `graphopt.graph.external`), not held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.quant.spec import QuantSpec

KEY = "graphopt.original"


Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Original:
    """`read` gives the float32 values, shaped as the integers are; `spec`: how they were quantized, None for a bias."""

    read: Callable[[], Array]
    spec: QuantSpec | None

    @property
    def array(self) -> Array:
        """The float32 values."""
        return self.read()


def held(array: Array) -> Original:
    """A float bias, in memory."""
    return Original(lambda: array, None)


def remember(dequantized: ir.Value, original: Original) -> None:
    """Say what was quantized into the constant that `dequantized` comes from."""
    node = dequantized.producer()
    assert node is not None
    node.meta[KEY] = original


def original(node: ir.Node) -> Original | None:
    """What `remember` said of this DequantizeLinear; None where it came from a file or has run-time inputs."""
    return node.meta.get(KEY)
