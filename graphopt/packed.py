"""Float weights kept as the few bits that they are made of: dequantized and laid out for a kernel when loaded.

Layouts are linear: a list of `Step`s describes one, for the compiler that packs an array, and in an artifact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

Array = np.ndarray[Any, Any]
HALVES = ("int4", "uint4")
"""Types of 4 bits, by name."""


class Step(BaseModel):
    """One step on an array.

    `reshape` and `transpose` by `sizes`; `pad`: zeros behind axis ``sizes[0]`` up to size ``sizes[1]``; `multiply`:
    axis ``sizes[0]`` by `matrix` [new, old], in float64.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    does: Literal["reshape", "transpose", "pad", "multiply"]
    sizes: tuple[int, ...]
    matrix: tuple[tuple[float, ...], ...] = ()


Steps = tuple[Step, ...]


def reshape(*sizes: int) -> Step:
    """To an array of `sizes`, in C order."""
    return Step(does="reshape", sizes=sizes)


def transpose(*axes: int) -> Step:
    """Axes in another order."""
    return Step(does="transpose", sizes=axes)


def pad(axis: int, size: int) -> Step:
    """Zeros past the end of `axis` up to `size`."""
    return Step(does="pad", sizes=(axis, size))


def multiply(axis: int, matrix: Sequence[Sequence[float]]) -> Step:
    """`axis` times a matrix [new, old]."""
    return Step(does="multiply", sizes=(axis,), matrix=tuple(tuple(float(v) for v in row) for row in matrix))


def run(array: Array, steps: Iterable[Step]) -> Array:
    """What the steps make of `array`: contiguous, and of its dtype.

    Raises:
        ValueError: a step does not fit.
    """
    made = array
    for step in steps:
        match step.does:
            case "reshape":
                made = made.reshape(step.sizes)
            case "transpose":
                made = made.transpose(step.sizes)
            case "pad":
                axis, size = step.sizes
                missing = size - made.shape[axis]
                made = np.pad(made, [(0, missing if i == axis else 0) for i in range(made.ndim)])
            case "multiply":
                axis = step.sizes[0]
                product = np.tensordot(np.array(step.matrix), made.astype(np.float64), axes=(1, axis))
                made = np.moveaxis(product, 0, axis)
    return np.ascontiguousarray(made, array.dtype)


def dequantize(q: Array, scale: Array, zero: Array, axis: int, block: int) -> Array:
    """``(q - zero) * scale`` as float32; one of both, or one for each of `axis` or, if not 0, of its blocks."""
    if block:
        cut = tuple(slice(size) for size in q.shape)
        scale, zero = (np.repeat(a, block, axis=axis)[cut] if a.ndim else a for a in (scale, zero))
    else:
        scale, zero = (along(a, q.ndim, axis) for a in (scale, zero))
    return (q.astype(np.float64) - zero.astype(np.float64)).astype(np.float32) * scale  # float8 too


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """A float32 array as `steps` on what `dequantize` makes of the rest."""

    q: Array
    scale: Array
    zero: Array
    axis: int
    block: int
    steps: Steps = ()

    def then(self, steps: Iterable[Step]) -> Packed:
        """With further steps."""
        return dataclasses.replace(self, steps=(*self.steps, *steps))

    @property
    def nbytes(self) -> int:
        """What an artifact stores."""
        return sum(nbytes_of(a.dtype, a.shape) for a in (self.q, self.scale, self.zero))

    def array(self) -> Array:
        """The array; ValueError where the parts do not fit."""
        return run(dequantize(self.q, self.scale, self.zero, self.axis, self.block), self.steps)


def to_bytes(array: Array) -> memoryview:
    """Its elements in C order, without a copy where it lies so; those of 4 bits two to a byte, the first one lower."""
    if array.dtype.name not in HALVES:
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    halves = array.reshape(-1).astype(np.int8).view(np.uint8) & 15
    halves = np.append(halves, np.zeros(halves.size % 2, np.uint8))
    return (halves[0::2] | halves[1::2] << 4).data


def nbytes_of(dtype: np.dtype[Any], shape: Sequence[int]) -> int:
    """The length of `to_bytes`."""
    size = int(np.prod(shape, dtype=np.int64))
    return -(-size // 2) if dtype.name in HALVES else size * dtype.itemsize


def from_bytes(data: memoryview, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    """What `to_bytes` was given, in place but for 4 bits; ValueError when it can't be that."""
    if dtype.name not in HALVES:
        return np.frombuffer(data, dtype).reshape(shape)
    pairs = np.frombuffer(data, np.uint8)
    halves = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[: int(np.prod(shape, dtype=np.int64))]
    signed = (halves.astype(np.int8) ^ 8) - 8 if dtype.name == "int4" else halves
    return signed.astype(dtype).reshape(shape)


def along(parameter: Array, rank: int, axis: int) -> Array:
    """A scalar, or a vector that lies along `axis` of an array of `rank`, for broadcasting."""
    if parameter.size == 1:
        return parameter.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return parameter.reshape(shape)
