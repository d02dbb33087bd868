"""Whether a call's inputs are those the artifact was compiled for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.artifact.manifest import TensorSpec, dtype_of
from graphopt.errors import DataError
from graphopt.sizes import Sizes

Array = np.ndarray[Any, Any]
REMEMBERED = 64
"""Shapes of inputs that are known to fit when they come again."""


def fit(
    inputs: Sequence[TensorSpec], feeds: Mapping[str, Any], dims: Mapping[str, Sizes]
) -> tuple[list[Any], dict[str, int]]:
    """The feeds as arrays in the order of `inputs`, each of the right dtype, rank and dimensions; and the sizes that
    symbolic dimensions got. `dims`: those that they may have, where that was declared.

    Sequences are lists of arrays, empty optionals None, and text may come as any array of strings.

    A symbolic dimension takes the size it meets first and must have it wherever it stands. Nothing is converted:
    a float64 array for a float32 input is the caller's mistake to mend.

    Raises:
        DataError: names the input, what was expected and what came.
    """
    if len(feeds) != len(inputs) or any(spec.name not in feeds for spec in inputs):
        names = [spec.name for spec in inputs]
        unknown, missing = [n for n in feeds if n not in names], [n for n in names if n not in feeds]
        wrong = [f"missing {', '.join(map(repr, missing))}"] * bool(missing)
        wrong += [f"unknown {', '.join(map(repr, unknown))}"] * bool(unknown)
        expected = ", ".join(f"{spec.name!r} ({spec})" for spec in inputs) or "none"
        raise DataError(f"the inputs' names are not the model's ({'; '.join(wrong)}): its inputs are {expected}.")
    sizes: dict[str, tuple[int, str]] = {}
    arrays = [_fit(spec, feeds[spec.name], sizes, dims) for spec in inputs]
    return arrays, {name: size for name, (size, _) in sizes.items()}


class Signature:
    """What `fit` does, for the inputs of one artifact, faster where arrays of the same shapes came before."""

    def __init__(self, inputs: Sequence[TensorSpec], dims: Mapping[str, Sizes]) -> None:
        self._inputs, self._dims = inputs, dims
        self._met: dict[tuple[tuple[int, ...], ...], dict[str, int]] = {}
        dtypes = [(spec.name, dtype_of(spec.dtype)) for spec in inputs]
        plain = all(spec.kind == "tensor" for spec in inputs) and all(dtype.isbuiltin == 1 for _, dtype in dtypes)
        self._dtypes = dtypes if plain else None

    def fit(self, feeds: Mapping[str, Any]) -> tuple[list[Any], dict[str, int]]:
        """As the function `fit`."""
        if self._dtypes is None or len(feeds) != len(self._dtypes):
            return fit(self._inputs, feeds, self._dims)
        arrays: list[Array] = []
        shapes: tuple[tuple[int, ...], ...] = ()
        for name, dtype in self._dtypes:
            array = feeds.get(name)
            if type(array) is not np.ndarray or (array.dtype is not dtype and array.dtype != dtype):
                return fit(self._inputs, feeds, self._dims)
            arrays.append(array)
            shapes += (array.shape,)
        sizes = self._met.get(shapes)
        if sizes is None:
            arrays, sizes = fit(self._inputs, feeds, self._dims)
            if len(self._met) < REMEMBERED:
                self._met[shapes] = sizes
        return arrays, sizes


def _fit(spec: TensorSpec, given: Any, sizes: dict[str, tuple[int, str]], dims: Mapping[str, Sizes]) -> Any:
    if spec.kind.startswith("optional") and given is None:
        return None
    if spec.kind.endswith("sequence"):
        if not isinstance(given, (list, tuple)):
            raise DataError(f"input {spec.name!r} expects {spec}, a list of arrays, and got {type(given).__name__}.")
        return [_fit(TensorSpec(name=spec.name, dtype=spec.dtype, shape=None), item, sizes, dims) for item in given]
    try:
        array = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise DataError(f"input {spec.name!r} expects {spec} and got no array: {error}") from error
    if spec.dtype == "str" and array.dtype.kind in "US":
        array = array.astype(object)
    if array.dtype != dtype_of(spec.dtype):
        raise _wrong(spec, array, f"convert it with .astype({spec.dtype!r}) if that is what is meant")
    if spec.shape is None:
        return array
    if array.ndim != len(spec.shape):
        raise _wrong(spec, array, f"it must have {len(spec.shape)} dimensions, not {array.ndim}")
    for axis, dim in enumerate(spec.shape):
        size = array.shape[axis]
        if isinstance(dim, str):
            known, where = sizes.setdefault(dim, (size, spec.name))
            if size != known:
                raise _wrong(spec, array, f"dimension {axis} is {size} where {dim} is already {known} (in {where!r})")
            if dim in dims and not dims[dim].allows(size):
                raise _wrong(spec, array, f"dimension {axis}, {dim}, must be {dims[dim].described()}, not {size}")
        elif dim is not None and size != dim:
            raise _wrong(spec, array, f"dimension {axis} must be {dim}, not {size}")
    return array


def _wrong(spec: TensorSpec, array: Array, why: str) -> DataError:
    return DataError(f"input {spec.name!r} expects {spec} and got {array.dtype}{list(array.shape)}: {why}.")
