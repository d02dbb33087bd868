"""Rows of the arrays in an .npz file, streamed out of the zip without loading an array whole."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from graphopt.data.batches import Feeds
from graphopt.errors import DataError


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in `path`. Raises `DataError` if it is no .npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npz file: {error}.") from None


def npz_shape(path: Path, name: str) -> tuple[int, ...]:
    """Shape of the array `name` in `path`."""
    with _opened(path), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
        return _Rows(stream, path, name).shape


def npz_rows(path: Path, names: list[str], step: int) -> Iterator[Feeds]:
    """Successive groups of `step` rows (axis 0; the last may be shorter) of all arrays `names` together.

    At most `step` rows of each array are in memory. An array saved in Fortran order can't be read by rows
    and is refused, as are pickled objects. Raises `DataError`, also when the file is truncated or damaged.
    """
    with _opened(path), contextlib.ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))
        rows = {name: _Rows(stack.enter_context(archive.open(f"{name}.npy")), path, name) for name in names}
        if not rows:
            raise DataError(f"{path} holds no arrays.")
        lengths = {name: r.shape[0] for name, r in rows.items()}
        if len(set(lengths.values())) != 1:
            listed = ", ".join(f"{name}: {n}" for name, n in lengths.items())
            raise DataError(f"The arrays of {path} disagree on the number of samples ({listed}).")
        total = next(iter(lengths.values()))
        for start in range(0, total, step):
            yield {name: r.read(min(step, total - start)) for name, r in rows.items()}


class _Rows:
    """One .npy stream, its header read."""

    def __init__(self, stream: IO[bytes], path: Path, name: str) -> None:
        version = np.lib.format.read_magic(stream)
        read_header: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"array {name!r} is in .npy format {version}")
        shape, fortran, dtype = read_header(stream)
        if dtype.hasobject:
            raise DataError(f"{path}: array {name!r} holds pickled objects, which are never loaded.")
        if not shape:
            raise DataError(f"{path}: array {name!r} is a scalar; axis 0 must count the samples.")
        if fortran and len(shape) > 1:
            raise DataError(
                f"{path}: array {name!r} was saved in Fortran order and can't be streamed by samples: "
                "save numpy.ascontiguousarray(array) instead."
            )
        self.shape: tuple[int, ...] = shape
        self.dtype: np.dtype[Any] = dtype
        self._stream = stream

    def read(self, count: int) -> np.ndarray[Any, Any]:
        size = int(np.prod(self.shape[1:], dtype=np.int64)) * count * self.dtype.itemsize
        data = self._stream.read(size)
        if len(data) != size:
            raise EOFError("it ends before its last sample")
        return np.frombuffer(bytearray(data), self.dtype).reshape(count, *self.shape[1:])


@contextlib.contextmanager
def _opened(path: Path) -> Generator[None]:
    """Whatever a damaged file makes zipfile, zlib or numpy raise, as one `DataError`."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a readable .npz file: {error}.") from None
