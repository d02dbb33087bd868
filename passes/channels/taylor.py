"""Scores by gradients: how much the outputs change to first order when a unit's weights go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.data import Feeds
from graphopt.passes.channels.groups import Channels

Array: TypeAlias = np.ndarray[Any, Any]


def by_gradients(model: ir.Model, channels: Channels, feeds: Sequence[Feeds], seed: int) -> Array:
    """``E (sum of w * J^T r over the weights that make the unit)^2``, see `graphopt.training.taylor`.

    What is not in a group has infinity.
    """
    from graphopt.training.taylor import effects

    total = np.zeros(channels.count)
    for products in effects(model, feeds, seed):
        change = np.zeros(channels.count)
        for layer in channels.layers:
            if layer.outputs is None or layer.output_axis is None:
                continue
            value, *rest = layer.node.inputs[layer.index :]
            for constant, axis in [(value, layer.output_axis), *((bias, 0) for bias in rest[:1])]:
                product = products.get(str(constant.name)) if constant is not None else None
                if product is not None and product.shape[axis] == len(layer.outputs):
                    rows = np.moveaxis(product, axis, 0).reshape(len(layer.outputs), -1)
                    np.add.at(change, layer.outputs, rows.sum(axis=1, dtype=np.float64))
        total += change**2
    found = np.full(channels.count, np.inf)
    for group in channels.groups:
        found[group.units] = total[group.units]
    return found
