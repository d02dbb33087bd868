"""onnxruntime sessions: the oracle's, and those of an artifact's parts. Neither ONNX nor TVM is imported here.

Values are numpy arrays, lists of them (sequences), or None (empty optionals). Arrays go in without a copy; types that
numpy lacks (bfloat16, float8) go in and out by their bytes.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np

from graphopt.errors import DataError, HostError, ModelError

Array = np.ndarray[Any, Any]

_BYTEWISE = {
    "tensor(bfloat16)": (16, np.dtype(ml_dtypes.bfloat16)),
    "tensor(float8e4m3fn)": (17, np.dtype(ml_dtypes.float8_e4m3fn)),
    "tensor(float8e4m3fnuz)": (18, np.dtype(ml_dtypes.float8_e4m3fnuz)),
    "tensor(float8e5m2)": (19, np.dtype(ml_dtypes.float8_e5m2)),
    "tensor(float8e5m2fnuz)": (20, np.dtype(ml_dtypes.float8_e5m2fnuz)),
}
"""onnxruntime's name of a type that numpy lacks -> ONNX's number and the numpy type that stands for it."""
_PACKED = {
    "tensor(int4)": (22, np.dtype(ml_dtypes.int4)),
    "tensor(uint4)": (21, np.dtype(ml_dtypes.uint4)),
}
"""Two elements a byte, the first in the lower half."""


PROVIDERS: dict[str, list[Any]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
}


class Session:
    """A model in onnxruntime, to be run on named values."""

    def __init__(
        self,
        model: bytes | str,
        *,
        threads: int = 1,
        optimised: bool = False,
        device: Literal["cpu", "cuda"] = "cpu",
        weights: Mapping[str, Array] | None = None,
    ) -> None:
        """Open `model`, the bytes of an ONNX file or its path. `optimised`: with onnxruntime's own passes.

        `device`: cuda for its CUDA provider, float32 not rounded to TF32; nodes it lacks run on the CPU.
        `weights` are its initializers that the file says lie elsewhere; they are used where they are.

        Raises:
            ModelError: onnxruntime refuses it.
            HostError: its CUDA provider is not installed, or can't run here.
        """
        import onnxruntime as ort

        os.environ.setdefault("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
        options = ort.SessionOptions()
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads leave the cores between runs
        options.log_severity_level = 4
        self._weights = {name: _ort_value(array) for name, array in (weights or {}).items()}
        if self._weights:
            options.add_external_initializers(list(self._weights), list(self._weights.values()))
        _need_provider(device, ort.get_available_providers())
        try:
            self._session = ort.InferenceSession(model, options, providers=PROVIDERS[device])
        except Exception as error:  # its exceptions have no base of their own
            raise ModelError(f"onnxruntime refuses the model: {_line(error)}") from error
        _need_provider(device, self._session.get_providers())
        self._inputs = [(value.name, value.type) for value in self._session.get_inputs()]
        self._outputs = [(value.name, value.type) for value in self._session.get_outputs()]
        kinds = [kind for _, kind in (*self._inputs, *self._outputs)]
        self._bytewise = any(kind in _BYTEWISE or kind in _PACKED for kind in kinds)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name.

        Raises:
            DataError: the feeds don't fit the inputs.
            ModelError: a node fails.
        """
        from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportAttributeAccessIssue]

        names = [name for name, _ in self._outputs]
        try:
            if not self._bytewise:
                return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
            given = {name: _to_ort(feeds[name], kind) for name, kind in self._inputs}
            found = self._session.run_with_ort_values(names, given)
        except (state.InvalidArgument, ValueError, KeyError) as error:
            raise DataError(f"the inputs don't fit the model: {_line(error)}") from error
        except Exception as error:  # its exceptions have no base of their own
            raise ModelError(f"onnxruntime can't run the model on this input: {_line(error)}") from error
        return {name: _from_ort(value, kind) for value, (name, kind) in zip(found, self._outputs, strict=True)}


def _need_provider(device: str, found: Sequence[str]) -> None:
    if device == "cuda" and "CUDAExecutionProvider" not in found:
        raise HostError(
            "onnxruntime's CUDA provider is not there, or finds no GPU or no cuDNN: pip install onnxruntime-gpu."
        )


def _ort_value(array: Array) -> Any:
    kind = next((kind for kind, (_, dtype) in _BYTEWISE.items() if dtype == array.dtype), "")
    return _to_ort(array, kind)


def _to_ort(value: Array, kind: str) -> Any:
    import onnxruntime as ort

    if kind in _PACKED:
        number, _ = _PACKED[kind]
        flat = np.append(value.reshape(-1).view(np.uint8) & 15, np.zeros(value.size % 2, np.uint8))
        made = ort.OrtValue.ortvalue_from_shape_and_type(list(value.shape), number)
        packed = (flat[::2] | flat[1::2] << 4).astype(np.uint8)
        ctypes.memmove(made.data_ptr(), packed.ctypes.data, packed.nbytes)
        return made
    if kind in _BYTEWISE:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(value), _BYTEWISE[kind][0])
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))


def _from_ort(value: Any, kind: str) -> Array:
    if kind not in _BYTEWISE and kind not in _PACKED:
        return value.numpy()
    shape = value.shape()
    size = int(np.prod(shape, dtype=np.int64))
    dtype = (_BYTEWISE.get(kind) or _PACKED[kind])[1]
    nbytes = (size + 1) // 2 if kind in _PACKED else size * dtype.itemsize
    raw = np.frombuffer(ctypes.string_at(value.data_ptr(), nbytes), np.uint8) if nbytes else np.zeros(0, np.uint8)
    if kind in _PACKED:
        both = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[:size]
        signed = dtype == np.dtype(ml_dtypes.int4)
        return (both.astype(np.int8) - 16 * (both > 7) * signed).astype(dtype).reshape(shape)
    return raw.view(dtype).reshape(shape).copy()


def _line(error: Exception) -> str:
    """What onnxruntime said, without its error codes, source files and C++ signatures."""
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    text = re.sub(r"^\d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+:\d+ .*?\)(?: const)? (?=\S)", "", text)
    return text[:500]
