"""The NPU at run time: the packed function that compiled libraries call. Imports neither ONNX nor TVM's compiler."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.targets.npu.machine import from_json
from graphopt.targets.npu.simulator import run_stream
from graphopt.targets.npu.stream import unpack

SYMBOL = "graphopt.npu.run"


def register() -> None:
    """Make the simulator known to TVM's runtime; must happen before a library that uses it is run."""
    import tvm_ffi

    tvm_ffi.register_global_func(SYMBOL, run, override=True)


def run(source: Any, machine: Any, stream: Any, constants: Any, result: Any) -> None:
    """Execute a stream: tensors in, `result` filled. `machine`, `stream`, `constants` are uint8 tensors.

    Raises:
        ArtifactError: the stream is damaged, for another machine, or reaches outside a memory.
    """
    spaces = [_bytes(constants), _bytes(source), _bytes(result)]
    run_stream(unpack(_bytes(stream).tobytes()), from_json(_bytes(machine).tobytes()), spaces)


def _bytes(tensor: Any) -> np.ndarray[Any, Any]:
    """The memory of a contiguous tensor, not a copy."""
    return np.from_dlpack(tensor).reshape(-1).view(np.uint8)
