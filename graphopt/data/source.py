"""`open_data`: whatever a user has at hand, as checked `Batches` for one model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import onnx_ir as ir

from graphopt.data.batches import Batches, Feeds, cut, regroup
from graphopt.data.check import checked
from graphopt.data.npz import npz_names, npz_rows, npz_shape
from graphopt.errors import DataError


class CalibrationReader(Protocol):
    """onnxruntime's `CalibrationDataReader`, by shape."""

    def get_next(self) -> Mapping[str, np.ndarray[Any, Any]] | None:
        """The next batch, or None after the last."""
        ...


Source: TypeAlias = (
    str
    | os.PathLike[str]
    | CalibrationReader
    | Mapping[str, np.ndarray[Any, Any]]
    | Iterable[Mapping[str, np.ndarray[Any, Any]]]
    | Callable[[], Iterable[Mapping[str, np.ndarray[Any, Any]]]]
)


def open_data(source: Source, model: ir.Model, batch_size: int = 32) -> Batches:
    """Batches for `model` from any of:

    - the path of an .npz file: arrays named like the inputs (one unnamed array will do for a model with one
      input), axis 0 counts the samples; streamed. An array with one axis more than its input gives the
      input's whole value in each sample;
    - a mapping of such arrays;
    - a directory of .npz files: each is one batch, of any size, read in order of name;
    - an onnxruntime `CalibrationDataReader`, an iterable of feeds, or a function that returns one.

    Where every input has an open leading dimension, large batches are cut to `batch_size` samples. Where all
    leading dimensions are the same fixed number B, samples are regrouped into batches of exactly B, and an
    incomplete last one is dropped. What can be read only once is kept in a temporary directory as it is first
    read. Every batch is checked against the inputs' names, dtypes, ranks and fixed dimensions, with a
    `DataError` that names the input, what it needs and what came.
    """
    inputs = list(model.graph.inputs)
    fixed = fixed_batch(inputs)
    divisible = fixed is None and all(v.shape is not None and v.shape.rank() and v.shape.is_dynamic(0) for v in inputs)
    read = _reader(source, inputs, fixed or batch_size)
    label = f"{os.fspath(source)}: " if isinstance(source, str | os.PathLike) else ""

    def make() -> Iterator[Feeds]:
        stream = (checked(feeds, inputs, label, any_batch=fixed is not None) for feeds in read())
        if fixed is not None:
            stream = regroup(stream, fixed)
        elif divisible:
            stream = cut(stream, batch_size)
        empty = True
        for feeds in stream:
            empty = False
            yield feeds
        if empty:
            need = f"one batch of {fixed} samples" if fixed else "one sample"
            raise DataError(f"{label}the data does not hold {need}.")

    return Batches(make, divisible=divisible)


def fixed_batch(inputs: Sequence[ir.Value]) -> int | None:
    """The fixed leading dimension that all inputs share, or None: data comes in batches of exactly so many samples."""
    leading = {v.shape[0] if v.shape is not None and v.shape.rank() else None for v in inputs}
    only = leading.pop() if len(leading) == 1 else None
    return only if isinstance(only, int) and only > 0 else None


def _reader(source: Any, inputs: Sequence[ir.Value], step: int) -> Callable[[], Iterable[Feeds]]:
    """How to read `source` from its start, any number of times."""
    if isinstance(source, str | os.PathLike):
        path = Path(cast("str | os.PathLike[str]", source))
        if path.is_dir():
            return lambda: _directory(path, inputs)
        if not path.exists():
            raise DataError(f"There is no calibration data at {path}.")
        return lambda: _file(path, inputs, step)
    if hasattr(source, "get_next"):
        if hasattr(source, "rewind"):
            return lambda: _drain(source)
        return _Spool(_drain(source)).read
    if isinstance(source, Mapping):
        arrays = cast("Mapping[str, np.ndarray[Any, Any]]", source)
        return lambda: _slices(arrays, inputs, step)
    if callable(source):
        return cast("Callable[[], Iterable[Feeds]]", source)
    if isinstance(source, Iterator):
        return _Spool(cast("Iterator[Feeds]", source)).read
    if isinstance(source, Iterable):
        return lambda: cast("Iterable[Feeds]", source)
    raise DataError(
        f"Calibration data can't be read from a {type(source).__name__}: give the path of an .npz file or "
        "of a directory of them, a CalibrationDataReader, or an iterable of {input name: array}."
    )


def _drain(reader: Any) -> Iterator[Feeds]:
    if hasattr(reader, "rewind"):
        reader.rewind()
    while (feeds := reader.get_next()) is not None:
        yield feeds


def _file(path: Path, inputs: Sequence[ir.Value], step: int) -> Iterator[Feeds]:
    names = npz_names(path)
    rename = _named(names, inputs)
    ranks = {rename.get(name, name): len(npz_shape(path, name)) for name in names}
    whole = _whole_values(ranks, inputs)
    for feeds in npz_rows(path, names, 1 if whole else step):
        named = {rename.get(name, name): array for name, array in feeds.items()}
        yield {name: array[0] if name in whole else array for name, array in named.items()}


def _slices(arrays: Mapping[str, np.ndarray[Any, Any]], inputs: Sequence[ir.Value], step: int) -> Iterator[Feeds]:
    if 0 in {array.ndim for array in arrays.values()} or len({len(array) for array in arrays.values()}) > 1:
        raise DataError("The arrays given as calibration data must agree on axis 0, which counts the samples.")
    whole = _whole_values({name: array.ndim for name, array in arrays.items()}, inputs)
    step = 1 if whole else step
    for start in range(0, min(map(len, arrays.values()), default=0), step):
        yield {name: a[start] if name in whole else a[start : start + step] for name, a in arrays.items()}


def _directory(path: Path, inputs: Sequence[ir.Value]) -> Iterator[Feeds]:
    files = sorted(path.glob("*.npz"))
    if not files:
        raise DataError(f"The calibration directory {path} holds no .npz file.")
    for file in files:
        names = npz_names(file)
        rename = _named(names, inputs)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                feeds = {rename.get(name, name): arrays[name] for name in names}
        except Exception as error:  # np.load raises whatever the damaged bytes lead to
            raise DataError(f"{file} is not a readable .npz file: {error}.") from None
        yield feeds


def _named(names: list[str], inputs: Sequence[ir.Value]) -> dict[str, str]:
    """The unnamed array of an .npz file (numpy calls it arr_0) stands for the only input."""
    return {"arr_0": str(inputs[0].name)} if names == ["arr_0"] and len(inputs) == 1 else {}


def _whole_values(ranks: Mapping[str, int], inputs: Sequence[ir.Value]) -> set[str]:
    """Inputs whose array has one axis more than they do: each row is a whole value."""
    shapes = {str(v.name): v.shape for v in inputs}
    return {name for name, rank in ranks.items() if (s := shapes.get(name)) is not None and rank == s.rank() + 1}


class _Spool:
    """Feeds that can be read only once, written to a temporary directory as they are first read."""

    def __init__(self, source: Iterator[Feeds]) -> None:
        self._source = source
        self._folder = tempfile.TemporaryDirectory(prefix="graphopt-data-")  # removed with this object
        self._names: list[list[str]] = []

    def read(self) -> Iterator[Feeds]:
        k = 0
        while True:
            file = Path(self._folder.name, f"{k}.npz")
            if k < len(self._names):
                with np.load(file, allow_pickle=False) as arrays:
                    yield {name: arrays[f"arr_{i}"] for i, name in enumerate(self._names[k])}
            else:
                feeds = next(self._source, None)
                if feeds is None:
                    return
                np.savez(file, *feeds.values(), allow_pickle=False)
                self._names.append(list(feeds))
                yield feeds
            k += 1
