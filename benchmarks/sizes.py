"""The sizes that a benchmark gives to a model's free dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir


def free_sizes(model: ir.Model, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
    """Each symbolic dimension of the inputs, and its size in `feeds`."""
    return {
        str(dim.value): feeds[str(value.name)].shape[axis]
        for value in model.graph.inputs
        for axis, dim in enumerate(value.shape or ())
        if not isinstance(dim, int)
    }
