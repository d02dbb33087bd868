"""What a report says of a weight: range, moments, zeros, and a histogram, before and after in the same bins."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.graph.cost import constant

Array = np.ndarray[Any, Any]
BINS = 32
SAMPLE = 1 << 16
"""Elements that are looked at; of larger tensors, evenly spaced ones."""


@dataclasses.dataclass(frozen=True)
class Stats:
    """Of the finite elements of a tensor (or of `SAMPLE` of them: `sampled`); `zeros` is a share."""

    type: str
    size: int
    sampled: bool
    low: float
    high: float
    mean: float
    std: float
    zeros: float


@dataclasses.dataclass(frozen=True)
class Weight:
    """A constant input of a node before and after; counts of `BINS` equal bins from `low` to `high`."""

    name: str
    before: Stats | None
    after: Stats | None
    low: float
    high: float
    counts_before: list[int] | None
    counts_after: list[int] | None


def weights(old: ir.Node | None, new: ir.Node | None) -> list[Weight]:
    """The numeric constants of a node with 2 elements or more, input by input, dequantized."""
    found: list[Weight] = []
    for index in range(max((len(n.inputs) for n in (old, new) if n is not None), default=0)):
        was, now = _constant(old, index), _constant(new, index)
        if was is not None or now is not None:
            name = (now or was or ("", "", 0, None))[0]
            weight = _weight(name, was, now)
            if weight is not None:
                found.append(weight)
    return found


_Constant = tuple[str, str, int, Array]


def _constant(node: ir.Node | None, index: int) -> _Constant | None:
    """Name, type, size and sampled elements of an input that is constant, also through a DequantizeLinear."""
    value = node.inputs[index] if node is not None and index < len(node.inputs) else None
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return _dequantized(producer)
    if constant(value) is None:
        return None
    array = constant_array(value)
    if array is None or array.size < 2 or array.dtype.kind not in "fiuV":
        return None
    return value.name or "", f"{_dtype(value)}{list(array.shape)}", array.size, _sample(array).astype(np.float64)


def _dequantized(node: ir.Node) -> _Constant | None:
    """``(q - zero_point) * scale``, scales along `axis`; of blocked scales the integers themselves."""
    quantized, scale = constant_array(node.inputs[0]), constant_array(node.inputs[1])
    if quantized is None or scale is None or quantized.size < 2 or node.inputs[0] is None:
        return None
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    picked = _indices(quantized.size)
    numbers = quantized.reshape(-1)[picked].astype(np.float64)
    if scale.ndim <= 1 and not node.attributes.get_int("block_size", 0):
        axis = node.attributes.get_int("axis", 1)
        at = np.unravel_index(picked, quantized.shape)[axis] if scale.size > 1 else 0
        offset = 0.0 if zero is None else zero.reshape(-1).astype(np.float64)[at if zero.size > 1 else 0]
        numbers = (numbers - offset) * scale.reshape(-1).astype(np.float64)[at]
    name = f"{_dtype(node.inputs[0])}{list(quantized.shape)}"
    return node.inputs[0].name or "", name, quantized.size, numbers


def _dtype(value: ir.Value) -> str:
    tensor = value.const_value
    dtype = value.dtype or (tensor.dtype if tensor is not None else None)
    return "" if dtype is None else dtype.name.lower()


def _indices(size: int) -> Array:
    return np.arange(size) if size <= SAMPLE else np.arange(SAMPLE) * size // SAMPLE


def _sample(array: Array) -> Array:
    flat = array.reshape(-1)
    return flat if flat.size <= SAMPLE else flat[_indices(flat.size)]


def _weight(name: str, was: _Constant | None, now: _Constant | None) -> Weight | None:
    finite = [None if one is None else one[3][np.isfinite(one[3])] for one in (was, now)]
    every = [numbers for numbers in finite if numbers is not None and numbers.size]
    if not every:
        return None
    low, high = min(float(n.min()) for n in every), max(float(n.max()) for n in every)
    counts = [None if n is None else _histogram(n, low, high) for n in finite]
    stats = [
        _stats(one, numbers) if one is not None and numbers is not None and numbers.size else None
        for one, numbers in zip((was, now), finite, strict=True)
    ]
    return Weight(name, stats[0], stats[1], low, high, counts[0], counts[1])


def _histogram(numbers: Array, low: float, high: float) -> list[int]:
    if high <= low:
        return [numbers.size, *[0] * (BINS - 1)]
    scaled = (numbers / 2 - low / 2) / (high / 2 - low / 2) * BINS  # halved: high - low may overflow
    return np.bincount(np.clip(scaled.astype(np.int64), 0, BINS - 1), minlength=BINS).tolist()


def _stats(one: _Constant, numbers: Array) -> Stats:
    _, kind, size, _ = one
    return Stats(
        type=kind,
        size=size,
        sampled=size > SAMPLE,
        low=float(numbers.min()),
        high=float(numbers.max()),
        mean=float(numbers.mean()),
        std=float(numbers.std()),
        zeros=float(np.mean(numbers == 0)),
    )
