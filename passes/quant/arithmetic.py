"""The arithmetic of QuantizeLinear and DequantizeLinear, and how scales follow from ranges."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.passes.quant.spec import QuantSpec

Array = np.ndarray[Any, Any]
INT32_MAX = 2**31 - 1


def scale_and_zero_point(low: Array | float, high: Array | float, spec: QuantSpec) -> tuple[Array, Array]:
    """Scale (float32) and zero point (`spec.dtype`) that cover ``[min(low, 0), max(high, 0)]``, elementwise.

    Zero is always represented exactly. Symmetric: ``scale = max(-low, high) / highest``. Asymmetric:
    ``scale = (high - low) / (highest - lowest)``, ``zero_point = round(lowest - low / scale)``. A range that is
    empty, or too small for a normal float32 scale, gets scale 1: its values all become zero.
    """
    low = np.minimum(np.asarray(low, np.float64), 0.0)
    high = np.maximum(np.asarray(high, np.float64), 0.0)
    scale = np.maximum(-low, high) / spec.highest if spec.symmetric else (high - low) / (spec.highest - spec.lowest)
    usable = scale >= np.finfo(np.float32).tiny
    scale = np.where(usable, scale, 1.0)
    if spec.power_of_two:
        scale = np.exp2(np.ceil(np.log2(scale)))
    scale = np.minimum(scale, np.finfo(np.float32).max).astype(np.float32)
    zero = np.zeros_like(scale) if spec.symmetric else np.rint(spec.lowest - low / scale)
    return scale, np.clip(zero, spec.lowest, spec.highest).astype(np.int32).astype(spec.numpy)


def quantize(x: Array, scale: Array, zero_point: Array, spec: QuantSpec, axis: int | None = None) -> Array:
    """``saturate(round(x / scale) + zero_point)`` in float32, ties to even, as QuantizeLinear does.

    `scale` and `zero_point` are scalars, vectors along `axis` of `x`, or of the rank of `x` with one element per
    `spec.block` along `axis`. float8 rounds to its nearest number and has no zero point.
    """
    scale, zero_point = (_along(p, x.shape, axis, spec.block) for p in (scale, zero_point))
    with np.errstate(over="ignore"):  # a quotient of infinity saturates like any other
        steps = x.astype(np.float32, copy=False) / scale
    if spec.is_float:
        return np.clip(steps, spec.lowest, spec.highest).astype(spec.numpy)
    steps = np.clip(np.rint(steps) + zero_point.astype(np.float32), spec.lowest, spec.highest)
    return steps.astype(np.int32).astype(spec.numpy)


def dequantize(q: Array, scale: Array, zero_point: Array, axis: int | None = None, block: int | None = None) -> Array:
    """``(q - zero_point) * scale`` as float32, as DequantizeLinear does."""
    scale, zero_point = (_along(p, q.shape, axis, block) for p in (scale, zero_point))
    return (q.astype(np.float32) - zero_point.astype(np.float32)) * scale


def quantize_weight(weight: Array, spec: QuantSpec, least: Array | float = 0.0) -> tuple[Array, Array, Array]:
    """The quantized weight, its scale and zero point: one in all, per index of `spec.axis`, or per block of it.

    The range is all of the group's, or with the observer "mse" the one of `SHARES` of it that has the least
    squared error. `least`: scales are not smaller than this (see `least_scale`).
    """
    low, high = _grouped(np.minimum, weight, spec), _grouped(np.maximum, weight, spec)
    if spec.observer == "mse":
        low, high = _least_squares(weight, low, high, spec)
    scale, zero_point = scale_and_zero_point(low, np.maximum(high, np.asarray(least) * spec.highest), spec)
    return quantize(weight, scale, zero_point, spec, spec.axis), scale, zero_point


SHARES = np.linspace(1.0, 0.6, 9)
"""Which parts of the full range are tried for each group of a weight."""


def _least_squares(weight: Array, low: Array, high: Array, spec: QuantSpec) -> tuple[Array, Array]:
    best, least = np.ones_like(low), np.full_like(low, np.inf)
    for share in SHARES.astype(weight.dtype):
        scale, zero = scale_and_zero_point(share * low, share * high, spec)
        back = dequantize(quantize(weight, scale, zero, spec, spec.axis), scale, zero, spec.axis, spec.block)
        error = _grouped(np.add, np.square(back - weight), spec)
        better = error < least
        best, least = np.where(better, share, best), np.where(better, error, least)
    return best * low, best * high


def _grouped(operation: np.ufunc, array: Array, spec: QuantSpec) -> Array:
    """`operation` (add, minimum, maximum) over each group of elements that shares a scale."""
    if spec.axis is None:
        return np.asarray(operation.reduce(array, axis=None))
    axis = spec.axis % array.ndim
    if spec.block is None:
        return operation.reduce(array, axis=tuple(a for a in range(array.ndim) if a != axis))
    return operation.reduceat(array, np.arange(0, array.shape[axis], spec.block), axis)


def least_scale(bias: Array, input_scale: Array) -> Array:
    """The weight scales from which on the bias fits int32 with a bit to spare: ``|b| <= 2**30 * s_x * s_w``.

    It binds in channels with next to no weight, such as dead ones after BatchNorm folding. The weight that the
    coarser scale loses there is lost beside the bias in float32 as well.
    """
    return np.abs(bias.astype(np.float64)) / (2.0**30 * input_scale)


def quantize_bias(bias: Array, scale: Array) -> Array | None:
    """``round(bias / scale)`` as int32 for ``scale = s_x * s_w``; None where int32 would clip."""
    steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    return steps.astype(np.int32) if np.all(np.abs(steps) <= INT32_MAX) else None


def _along(parameter: Array, shape: tuple[int, ...], axis: int | None, block: int | None) -> Array:
    """`parameter` so that it broadcasts over an array of `shape`."""
    if axis is None or parameter.ndim == 0:
        return parameter
    if block is not None:
        return np.repeat(parameter, block, axis).take(np.arange(shape[axis]), axis)
    return parameter.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
