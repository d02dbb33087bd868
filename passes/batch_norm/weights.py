"""Constant weights, plain or behind a DequantizeLinear, and what multiplying them makes of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.passes.batch_norm.plan import Plan, feed, feed_dequantized
from graphopt.passes.batch_norm.reading import Left, constant, integer, is_onnx, known, label

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Weight:
    """Constant input `index` of `node`.

    `array`: its values, in float64 where they were integers; `dtype`: the type `node` reads; `quantized`: the
    DequantizeLinear behind it.
    """

    node: ir.Node
    index: int
    array: Array
    dtype: np.dtype[Any]
    quantized: ir.Node | None = None

    @property
    def name(self) -> str:
        """Name of the value."""
        value = self.node.inputs[self.index]
        return str(value.name) if value is not None else ""


def weight(node: ir.Node, index: int, what: str = "weight") -> Weight:
    """Input `index` of `node`, which must be constant. Raises `Left` otherwise."""
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    if producer is None or not is_onnx(producer, "DequantizeLinear"):
        array = constant(node, index, what)
        return Weight(node, index, array, array.dtype)
    integers, scale, zero = _dequantize_inputs(producer)
    rank, axis = integers.ndim, _axis(producer, integers.ndim)
    spread = [_along(a, axis, rank) for a in (scale, zero)]
    return Weight(node, index, (_wide(integers) - spread[1]) * spread[0], scale.dtype, producer)


def multiply(plan: Plan, w: Weight, factor: Array) -> None:
    """Plan ``W·factor``; `factor` is float64 and broadcasts to the weight. A weight read elsewhere is copied.

    Raises:
        Left: the product overflows the weight's type, or the quantized weight has no room for the factor.
    """
    value = w.node.inputs[w.index]
    if value is not None and len(value.uses()) > 1:
        plan.copies.append(w.name)
    if w.quantized is None:
        what = f"weight '{w.name}' of {label(w.node)}"
        product = np.empty(w.array.shape, w.dtype)
        with np.errstate(all="ignore"):  # in float64, rounded once, and without a large array of float64
            np.multiply(w.array, factor, out=product, dtype=np.float64, casting="unsafe")
        plan.add(feed, w.node, w.index, _finite(product, what), f"{w.name}_folded")
        return
    arrays, axis = _rescale(w, w.quantized, factor)
    plan.add(feed_dequantized, w.node, w.index, arrays, {"axis": axis}, f"{w.name}_folded")


def rounded(array: Array, dtype: np.dtype[Any], what: str) -> Array:
    """`array` (float64) rounded once to `dtype`. Raises `Left` naming `what` when a value overflows."""
    with np.errstate(all="ignore"):
        return _finite(array.astype(dtype), what)


def _finite(array: Array, what: str) -> Array:
    if not np.isfinite(array).all():
        raise Left(f"the folded {what} overflows {array.dtype.name}")
    return array


def _rescale(w: Weight, node: ir.Node, factor: Array) -> tuple[list[Array], int]:
    """Integers, scale and zero point that dequantize to ``W·factor``, and their axis.

    The scale takes |factor|; a negative factor mirrors the channel's integers about the zero point, a factor of
    zero sets them to it (the scale must stay positive).
    """
    integers, scale, zero = _dequantize_inputs(node)
    factor = factor.reshape((1,) * (integers.ndim - factor.ndim) + factor.shape)
    varying = [i for i, size in enumerate(factor.shape) if size > 1]
    axis = varying[0] if varying else _axis(node, integers.ndim)
    if len(varying) > 1 or (scale.ndim and axis != _axis(node, integers.ndim)):
        raise Left(f"{label(node)} has no scale along the axis of the channels")
    vector = np.broadcast_to(factor.reshape(-1), (integers.shape[axis],))
    new_scale = scale.astype(np.float64) * np.where(vector == 0, 1.0, np.abs(vector))
    new_zero = np.broadcast_to(_wide(zero), vector.shape)
    new_integers = _wide(integers)
    if (vector <= 0).any():
        centre, sign = _along(new_zero, axis, integers.ndim), _along(np.sign(vector), axis, integers.ndim)
        new_integers = centre + sign * (new_integers - centre)
    back = new_integers.astype(integers.dtype)
    if (_wide(back) != new_integers).any():
        raise Left(
            f"a negative factor mirrors the integers of {label(node)}, and {integers.dtype.name} can't hold them"
        )
    arrays = [back, rounded(new_scale, scale.dtype, f"scale of {label(node)}")]
    if not (arrays[1] > 0).all():
        raise Left(f"the folded scale of {label(node)} underflows {scale.dtype.name}")
    return [*arrays, new_zero.astype(integers.dtype)], axis


def _dequantize_inputs(node: ir.Node) -> tuple[Array, Array, Array]:
    if integer(node, "block_size", 0) or integer(node, "output_dtype", 0):
        raise Left(f"{label(node)} is blocked or has an output type of its own")
    integers = constant(node, 0, "quantized weight")
    scale = constant(node, 1, "scale")
    zero = known(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if zero is None:
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            constant(node, 2, "zero point")
        zero = np.zeros(scale.shape, integers.dtype)
    return integers, scale.reshape(()) if scale.size == 1 else scale, zero.reshape(()) if zero.size == 1 else zero


def _axis(node: ir.Node, rank: int) -> int:
    return integer(node, "axis", 1) % max(rank, 1)


def _along(vector: Array, axis: int, rank: int) -> Array:
    wide = _wide(vector)
    return wide if wide.ndim == 0 else wide.reshape([-1 if i == axis else 1 for i in range(rank)])


def _wide(array: Array) -> Array:
    return array.astype(np.float64)
