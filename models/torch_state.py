"""Reads the tensors out of a torch checkpoint without torch, and without trusting its pickle.

Two layouts exist: the zip of torch >= 1.6 (`*/data.pkl` and one member per storage), and the older stream of
pickles (magic number, protocol, system, the state, the storages' keys) that the raw storages follow. In both, the
pickle may name `collections.OrderedDict`, the storage types and `torch._utils._rebuild_tensor_v2`, nothing else:
anything further is refused, so a checkpoint cannot run code.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from graphopt.errors import ModelError
from graphopt.models.base import Array

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage, all counted in elements; made into an array once the storage's bytes are read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, storages: Mapping[str, bytes]) -> Array:
        flat = np.frombuffer(storages[self.storage.key], self.storage.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.shape, *self.strides)) < 0 or (0 not in self.shape and last >= flat.size):
            raise ValueError(f"a tensor of shape {self.shape} reaches beyond its storage of {flat.size} elements")
        steps = tuple(s * flat.itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps).copy()


def _rebuild(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    known: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.known:
            raise ModelError(
                f"The checkpoint's pickle asks for {module_name}.{global_name}, which no plain state dict needs: "
                "it is refused. Save the model's state_dict() alone."
            )
        return self.known[module_name, global_name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"unknown persistent record {pid!r}")
        return _Storage(str(key), dtype)  # pyright: ignore[reportUnknownArgumentType]


def read_state(path: Path) -> dict[str, Array]:
    """The tensors of the state dict in `path` by name.

    Raises `ModelError` for a file that is no torch state dict, that is damaged, or whose pickle names anything
    beyond tensors.
    """
    try:
        with path.open("rb") as file:
            state, storages = _from_zip(file) if zipfile.is_zipfile(path) else _from_stream(file)
        return {name: value.array(storages) for name, value in state.items() if isinstance(value, _Tensor)}
    except ModelError:
        raise
    except Exception as error:  # damaged pickles raise anything
        raise ModelError(f"{path} is not a readable torch state dict: {error}.") from error


def _from_zip(file: IO[bytes]) -> tuple[Mapping[str, Any], dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        (listing,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = listing.removesuffix("data.pkl") + "data/"
        state = _Unpickler(io.BytesIO(archive.read(listing))).load()
        members = [name for name in archive.namelist() if name.startswith(folder)]
        return state, {name.removeprefix(folder): archive.read(name) for name in members}


def _from_stream(file: IO[bytes]) -> tuple[Mapping[str, Any], dict[str, bytes]]:
    if _Unpickler(file).load() != _MAGIC:
        raise pickle.UnpicklingError("the magic number is wrong")
    _protocol, _system = _Unpickler(file).load(), _Unpickler(file).load()
    unpickler = _Unpickler(file)
    state = unpickler.load()
    dtypes = {v.storage.key: v.storage.dtype for v in state.values() if isinstance(v, _Tensor)}
    storages: dict[str, bytes] = {}
    for key in _Unpickler(file).load():
        (elements,) = struct.unpack("<q", file.read(8))
        storages[key] = file.read(elements * dtypes[key].itemsize)
    return state, storages
