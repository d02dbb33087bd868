"""The process in which TVM's CUDA runtime runs on the emulated device: ``python -m ... TASK``.

The task is a pickled dict: ``driver``, a folder with the driver's two libraries; ``artifact``, a path; ``feeds``, a
list of dicts. It is replaced by the list of results, or by the error that graphopt raised.
"""

from __future__ import annotations

import ctypes
import pickle
import sys
from pathlib import Path
from typing import Any

import graphopt.targets.cuda.runtime as cuda_runtime
from graphopt.artifact import load, runtime
from graphopt.errors import GraphoptError

_EXACT_SIZES = 1  # TVM's allocator that asks the device for each tensor's very size


def start(driver: str) -> None:
    """Have TVM's CUDA runtime find the emulated device of the folder `driver`."""
    for library in ("libcudart.so.13", "libcuda.so.1"):
        ctypes.CDLL(str(Path(driver) / library), ctypes.RTLD_GLOBAL)
    for module, name, value in (
        (runtime, "_load_cuda_runtime", lambda: None),
        (runtime, "_POOLED", _EXACT_SIZES),
        (cuda_runtime, "_compile", _nothing_to_compile),
    ):
        setattr(module, name, value)


def main(task: dict[str, Any]) -> Any:
    """Run the artifact on each of the feeds."""
    start(task["driver"])
    try:
        run = load(task["artifact"]).run
        return [run(feeds) for feeds in task["feeds"]]
    except GraphoptError as error:
        return error


def _nothing_to_compile(source: str) -> bytes:
    """The driver has the kernels from elsewhere."""
    return b"emulated"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_bytes(pickle.dumps(main(pickle.loads(place.read_bytes()))))
