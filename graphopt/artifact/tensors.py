"""numpy's arrays as TVM's tensors and back, shared where both lay them out alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm_ffi

from graphopt.artifact.container import ALIGNMENT
from graphopt.artifact.store import aligned

Array = np.ndarray[Any, Any]

_CPU = 1
_NOT_IN_DLPACK = {"bfloat16": "uint16"}
_WIDER = {"int4": "int8", "uint4": "uint8"}


def to_tensor(array: Array) -> Any:
    """The array as a TVM tensor on the CPU: shared where it is contiguous and aligned, else copied."""
    array = carried(array)
    if array.size == 0:
        return allocate(array.shape, array.dtype.name, tvm_ffi.device("cpu", 0))
    if not (array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % ALIGNMENT == 0):
        array = aligned(array)
    carrier = _NOT_IN_DLPACK.get(array.dtype.name)
    if carrier is None:
        return tvm_ffi.from_dlpack(array)
    return _view(tvm_ffi.from_dlpack(array.view(carrier)), array.dtype.name)


def carried(array: Array) -> Array:
    """float8 as its bytes, 4-bit integers in 8 bits: what libraries take for them."""
    if array.dtype.isbuiltin == 1:  # numpy's own; a dtype's name takes it microseconds to make up
        return array
    name = array.dtype.name
    if name.startswith("float8"):
        return array.view(np.uint8)
    return array.astype(_WIDER[name]) if name in _WIDER else array


def meant(array: Array, dtype: np.dtype[Any]) -> Array:
    """A library's result as `dtype`, the inverse of `carried`."""
    if array.dtype == dtype:
        return array
    if dtype.name.startswith("float8") and array.dtype == np.uint8:
        return array.view(dtype)
    return array.astype(dtype, copy=False)


def _view(tensor: Any, dtype: str) -> Any:
    return tvm_ffi.get_global_func("runtime.TVMTensorCreateView")(tensor, tensor.shape, tvm_ffi.dtype(dtype), 0)


def allocate(shape: tuple[int, ...], dtype: Any, device: Any) -> Any:
    """A tensor on `device`, nothing written to it."""
    allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    return allocate(tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), device, None)


def copy_to(tensor: Any, device: Any) -> Any:
    """A tensor of its own on `device`."""
    copy = allocate(tensor.shape, tensor.dtype, device)
    tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")(tensor, copy)
    return copy


def leaves(result: Any) -> list[Any]:
    """What a program gives, one or several, as a list."""
    return list(result) if isinstance(result, tvm_ffi.Array) else [result]


def view_of(item: Any) -> Array:
    """A result where it lies, if numpy can see it there."""
    try:
        return np.from_dlpack(item)
    except (AttributeError, BufferError, RuntimeError, TypeError):
        return to_array(item)


def to_array(item: Any) -> Array:
    """A result as an array of its own; what Relax gives as a shape or a number is int64."""
    if isinstance(item, tvm_ffi.Shape):
        return np.array(list(item), np.int64)
    if not isinstance(item, tvm_ffi.Tensor):
        return np.asarray(item)
    try:
        return np.from_dlpack(item).copy()
    except (BufferError, RuntimeError):  # it lies on a device, or numpy has no such type
        if item.device.dlpack_device_type() != _CPU:
            item = copy_to(item, tvm_ffi.device("cpu", 0))
    dtype = str(item.dtype)
    if dtype not in _NOT_IN_DLPACK:
        return np.array(np.from_dlpack(item))
    import ml_dtypes

    return np.array(np.from_dlpack(_view(item, _NOT_IN_DLPACK[dtype]))).view(getattr(ml_dtypes, dtype))
