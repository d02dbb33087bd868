"""What values the weights have: sparsity, range, outliers. Read in pieces, so that large models need little memory."""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.absent import is_absent
from graphopt.graph.cost import constant

Array = np.ndarray[Any, Any]

PIECE = 1 << 20
"""Elements that are looked at together."""
FAR = 6.0
"""An outlier is further from the mean than this many standard deviations."""


@dataclasses.dataclass(frozen=True)
class WeightStats:
    """One constant: `readers` by name; `zeros` is the share of elements that are zero; of the finite elements the
    least, the greatest, mean and standard deviation; `outliers` counts elements more than `FAR` deviations from the
    mean, and `reach` is the distance of the farthest in deviations. `nonfinite` counts infinities and NaN.
    """

    name: str
    readers: list[str]
    dtype: str
    shape: list[int]
    nbytes: int
    zeros: float
    least: float
    greatest: float
    mean: float
    std: float
    outliers: int
    reach: float
    nonfinite: int


def weight_stats(model: ir.Model) -> list[WeightStats]:
    """The statistics of every constant of more than one number, in the order in which nodes first read them.

    Without those that an artifact was made without.
    """
    found: dict[ir.Value, list[str]] = {}
    for node in model.graph.all_nodes():
        for value in dict.fromkeys(value for value in node.inputs if value is not None):
            tensor = constant(value)
            if tensor is None or is_absent(tensor):
                continue
            if tensor.size > 1 and tensor.dtype not in _NOT_NUMBERS:
                found.setdefault(value, []).append(node.name or "")
    return [_stats(value, readers) for value, readers in found.items()]


_NOT_NUMBERS = (ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)


def _stats(value: ir.Value, readers: list[str]) -> WeightStats:
    tensor = constant(value)
    assert tensor is not None
    array = tensor.numpy()
    count = zeros = 0
    total, squares, least, greatest = 0.0, 0.0, np.inf, -np.inf
    for piece in _pieces(array):
        zeros += piece.size - int(np.count_nonzero(piece))
        finite = piece[np.isfinite(piece)]
        if finite.size:
            count += finite.size
            total += float(finite.sum())
            squares += float(np.square(finite).sum())
            least, greatest = min(least, float(finite.min())), max(greatest, float(finite.max()))
    mean = total / count if count else 0.0
    std = float(np.sqrt(max(squares / count - mean * mean, 0.0))) if count else 0.0
    reach = max(greatest - mean, mean - least) / std if std else 0.0
    outliers = sum(_far(piece, mean, FAR * std) for piece in _pieces(array)) if reach > FAR else 0
    return WeightStats(
        name=str(value.name),
        readers=readers,
        dtype=tensor.dtype.name,
        shape=[int(size) for size in tensor.shape.numpy()],
        nbytes=tensor.nbytes,
        zeros=zeros / array.size,
        least=least if count else 0.0,
        greatest=greatest if count else 0.0,
        mean=mean,
        std=std,
        outliers=outliers,
        reach=reach,
        nonfinite=array.size - count,
    )


def _far(piece: Array, mean: float, distance: float) -> int:
    return int(np.count_nonzero((np.abs(piece - mean) > distance) & np.isfinite(piece)))


def _pieces(array: Array) -> Iterator[Array]:
    """The elements of `array` in float64, piece by piece; pages of a mapped file are given back after each."""
    flat = array.reshape(-1)
    mapped = _map_of(array)
    for start in range(0, flat.size, PIECE):
        yield flat[start : start + PIECE].astype(np.float64)
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)


def _map_of(array: Array) -> mmap.mmap | None:
    """The read-only map of a file that `array` is a view of."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base if base is not None and array.nbytes > PIECE and not array.flags.writeable else None
