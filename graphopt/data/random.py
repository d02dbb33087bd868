"""Seeded inputs for any model, where no data was given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError
from graphopt.graph import declared_dims

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

BATCH, SPATIAL = 2, 64
"""Sizes taken for symbolic dimensions: the first one of an input, and all others."""
LARGEST = 1 << 30
"""Elements that an input may have."""


def random_feeds(model: ir.Model, seed: int = 0, dims: Mapping[str, int] | None = None) -> dict[str, Array]:
    """Normal floats, zeros and ones for integers, coin flips for booleans, by input name.

    Args:
        model: whose inputs are fed.
        seed: of the generator.
        dims: sizes of symbolic dimensions by name; others are `BATCH` in first place and `SPATIAL` elsewhere, or what
            the model declares them to be (`graphopt.graph.declare_dims`).

    Raises:
        DataError: an input is not a tensor, or too large.
    """
    rng = np.random.default_rng(seed)
    sizes, declared = dict(dims or {}), declared_dims(model)
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise DataError(f"there are no random values for input {value.name!r}: it is not a tensor.")
        shape: list[int] = []
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, int):
                shape.append(dim)
                continue
            name, default = str(dim.value), sizes.get(str(dim.value), BATCH if axis == 0 else SPATIAL)
            sizes[name] = declared[name].first(default) if name in declared else default
            shape.append(sizes[name])
        if math.prod(shape) > LARGEST:
            raise DataError(f"there are no random values for input {value.name!r}: {shape} is too large.")
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        if dtype == np.bool_:
            array = rng.random(shape) < 0.5
        elif np.issubdtype(dtype, np.integer):
            array = rng.integers(0, 2, shape)
        else:
            array = rng.standard_normal(shape)
        feeds[str(value.name)] = np.asarray(array, dtype)  # numpy makes a scalar of shape ()
    return feeds
