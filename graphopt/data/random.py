"""Seeded inputs for any model, where no data was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

BATCH, SPATIAL = 2, 64
"""Sizes taken for symbolic dimensions: the first one of an input, and all others."""


def random_feeds(model: ir.Model, seed: int = 0, dims: Mapping[str, int] | None = None) -> dict[str, Array]:
    """Normal floats, zeros and ones for integers, coin flips for booleans, by input name.

    Args:
        model: whose inputs are fed.
        seed: of the generator.
        dims: sizes of symbolic dimensions by name; others are `BATCH` in first place and `SPATIAL` elsewhere.
    """
    rng = np.random.default_rng(seed)
    sizes = dict(dims or {})
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        shape: list[int] = []
        for axis, dim in enumerate(value.shape or ()):
            default = BATCH if axis == 0 else SPATIAL
            shape.append(dim if isinstance(dim, int) else sizes.setdefault(str(dim.value), default))
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        if dtype == np.bool_:
            feeds[str(value.name)] = rng.random(shape) < 0.5
        elif np.issubdtype(dtype, np.integer):
            feeds[str(value.name)] = rng.integers(0, 2, shape).astype(dtype)
        else:
            feeds[str(value.name)] = rng.standard_normal(shape).astype(dtype)
    return feeds
