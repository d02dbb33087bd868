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

    `least`: scales are not smaller than this (see `least_scale`).
    """
    low, high = extremes(weight, spec)
    scale, zero_point = scale_and_zero_point(low, np.maximum(high, np.asarray(least) * spec.highest), spec)
    return quantize(weight, scale, zero_point, spec, spec.axis), scale, zero_point


def extremes(weight: Array, spec: QuantSpec) -> tuple[Array, Array]:
    """Minimum and maximum of each group of elements that shares a scale."""
    if spec.axis is None:
        return weight.min(), weight.max()
    axis = spec.axis % weight.ndim
    if spec.block is None:
        others = tuple(a for a in range(weight.ndim) if a != axis)
        return weight.min(axis=others), weight.max(axis=others)
    starts = np.arange(0, weight.shape[axis], spec.block)
    return np.minimum.reduceat(weight, starts, axis), np.maximum.reduceat(weight, starts, axis)


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
