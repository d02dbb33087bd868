"""The float tensor behind a quantized constant, kept in memory for the passes that follow in the same pipeline.

It hangs on the DequantizeLinear node and is not saved: a file holds the integers alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.quant.spec import QuantSpec

KEY = "graphopt.original"


@dataclasses.dataclass(frozen=True)
class Original:
    """`array`: the float32 values, shaped as the integers are; `spec`: how they were quantized, None for a bias."""

    array: np.ndarray[Any, Any]
    spec: QuantSpec | None


def remember(dequantized: ir.Value, array: np.ndarray[Any, Any], spec: QuantSpec | None) -> None:
    """Say what was quantized into the constant that `dequantized` comes from."""
    node = dequantized.producer()
    assert node is not None
    node.meta[KEY] = Original(array, spec)


def original(node: ir.Node) -> Original | None:
    """What `remember` said of this DequantizeLinear; None where it came from a file or has run-time inputs."""
    return node.meta.get(KEY)
