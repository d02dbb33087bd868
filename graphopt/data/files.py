"""Whole .npz files: the inputs of one run, and calibration data written for later."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from graphopt.atomic import atomic_write
from graphopt.data.batches import Feeds
from graphopt.errors import DataError


def read_npz(path: Path) -> Feeds:
    """Every array of an .npz file by name. Pickled objects are never loaded.

    Raises:
        DataError: there is no such file, or it is not a readable .npz.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not hasattr(arrays, "files"):
                raise ValueError("it holds one array; save it with numpy.savez(path, input_name=array)")
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # np.load raises whatever the damaged bytes lead to
        why = "it holds no arrays, or pickled objects" if "pickle" in str(error) else str(error).rstrip(".")
        raise DataError(f"{path} is not a readable .npz file: {why}.") from error


def write_npz(path: Path, arrays: Feeds) -> None:
    """Write arrays by name, whole or not at all; equal arrays give equal bytes."""
    with atomic_write(path) as scratch, scratch.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_batches(path: Path, batches: Iterable[Feeds]) -> int:
    """Write calibration batches: to one .npz (samples joined along axis 0) when `path` ends so, else to a folder.

    Returns how many batches were written. Raises `DataError` when batches of different shapes can't be joined.
    """
    if path.suffix == ".npz":
        stacked = list(batches)
        try:
            write_npz(path, {name: np.concatenate([b[name] for b in stacked]) for name in stacked[0]})
        except ValueError as error:
            raise DataError(
                f"the batches differ in shape and can't share one file: give a folder instead of {path}."
            ) from error
        return len(stacked)
    path.mkdir(parents=True, exist_ok=True)
    count = 0
    for count, feeds in enumerate(batches, 1):
        write_npz(path / f"{count:05}.npz", feeds)
    return count
