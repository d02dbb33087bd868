"""One affine map per channel, and the nodes that are one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.passes.batch_norm.reading import Left, constant, integer, is_onnx, known, number, rank

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Affine:
    """``y = scale·x + shift`` along one axis; `scale` and `shift` are float64 of shape [C]."""

    scale: Array
    shift: Array

    def after(self, first: Affine) -> Affine:
        """``self ∘ first``."""
        return Affine(self.scale * first.scale, self.scale * first.shift + self.shift)

    def without_shift(self) -> Affine:
        """The linear part."""
        return Affine(self.scale, np.zeros_like(self.shift))

    def slice(self, start: int, stop: int) -> Affine:
        """The map of channels `start` to `stop`."""
        return Affine(self.scale[start:stop], self.shift[start:stop])

    @property
    def channels(self) -> int:
        """C."""
        return len(self.scale)

    @property
    def shifts(self) -> bool:
        """Whether any channel's shift differs from zero."""
        return bool(self.shift.any())


def of_batch_norm(node: ir.Node) -> Affine:
    """``scale = γ / √(σ² + ε)``, ``shift = β - μ·scale`` (Ioffe and Szegedy 2015, algorithm 2), in float64.

    Raises:
        Left: training mode, parameters that are not constant, or a variance that is not positive.
    """
    if integer(node, "training_mode", 0):
        raise Left("training_mode=1 normalises by the statistics of the batch")
    if any(v.name and (v.uses() or v.is_graph_output()) for v in node.outputs[1:]):
        raise Left("its training outputs are used")
    if integer(node, "spatial", 1) == 0:
        raise Left("spatial=0 has statistics for each position, not for each channel")
    parameters = [
        constant(node, index, what).astype(np.float64)
        for index, what in enumerate(["scale", "bias", "mean", "variance"], start=1)
    ]
    gamma, beta, mean, variance = parameters
    if any(p.shape != gamma.shape or p.ndim != 1 for p in parameters):
        raise Left("its parameters differ in shape")
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + number(node, "epsilon", 1e-5))
        shift = beta - mean * scale
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        raise Left("variance + epsilon is not positive, or a parameter is not finite")
    return Affine(scale, shift)


def computed_operand(node: ir.Node) -> tuple[int, Array] | None:
    """For Add, Sub, Mul, Div with one constant operand: the other operand's index, and the constant in float64."""
    if not is_onnx(node, "Add", "Sub", "Mul", "Div"):
        return None
    arrays = [known(v) for v in node.inputs]
    if (arrays[0] is None) == (arrays[1] is None):
        return None
    index = 0 if arrays[0] is None else 1
    other = arrays[1 - index]
    assert other is not None
    return index, other.astype(np.float64)


def of_pointwise(node: ir.Node, index: int, other: Array, axis: int, channels: int) -> Affine | None:
    """The map that ``node(x, other)`` is, x being operand `index`; None when it is not one map per channel."""
    vector = along_axis(other, axis, rank(node.inputs[index]), channels)
    if vector is None or (node.op_type == "Div" and index == 1):
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "Add":
        return Affine(one, vector)
    if node.op_type == "Sub":
        return Affine(one, -vector) if index == 0 else Affine(-one, vector)
    with np.errstate(all="ignore"):
        affine = Affine(vector if node.op_type == "Mul" else 1 / vector, zero)
    return affine if np.isfinite(affine.scale).all() else None


def along_axis(array: Array, axis: int, rank: int, channels: int) -> Array | None:
    """`array` as a vector [C] if, broadcast to `rank` dimensions, it varies along `axis` alone; else None."""
    if array.ndim > rank:
        return None
    dims = (1,) * (rank - array.ndim) + array.shape
    if dims[axis] not in (1, channels) or array.size != dims[axis]:
        return None
    return np.broadcast_to(array.reshape(-1), (channels,))


def column(vector: Array, axis: int, rank: int) -> Array:
    """`vector` shaped so that it broadcasts along `axis` of an array of `rank` dimensions."""
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])
