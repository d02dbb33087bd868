"""The NPU at run time: the packed function that compiled libraries call. Imports neither ONNX nor TVM's compiler."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.targets.npu.machine import from_json
from graphopt.targets.npu.simulator import execute
from graphopt.targets.npu.stream import unpack

SYMBOL = "graphopt.npu.run"


def register() -> None:
    """Make the simulator known to TVM's runtime; must happen before a library that uses it is run."""
    import tvm_ffi

    tvm_ffi.register_global_func(SYMBOL, run, override=True)


def run(*tensors: Any) -> None:
    """Execute a stream: machine, stream and constants as uint8 tensors, then its inputs, then the outputs to fill.

    Raises:
        ArtifactError: the stream is damaged, for another machine, or reaches outside a memory.
    """
    description, words, constants, *rest = map(_bytes, tensors)
    stream = unpack(words.tobytes())
    count = len(stream.inputs)
    results = execute(stream, from_json(description.tobytes()), constants, rest[:count])
    for target, result in zip(rest[count:], results, strict=True):
        target[...] = result


def _bytes(tensor: Any) -> np.ndarray[Any, Any]:
    """The memory of a contiguous tensor, not a copy."""
    return np.from_dlpack(tensor).reshape(-1).view(np.uint8)
