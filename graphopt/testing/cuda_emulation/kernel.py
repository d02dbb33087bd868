"""The process in which one kernel runs on the emulated device: ``python -m ... TASK``.

The task is a pickled dict: ``driver``, a folder with the driver's two libraries; ``kernels``, the path of
theirs; ``kernel``, ``grid``, ``block``, ``shared`` and ``arguments``, as `run_kernel` has them. It is replaced by the
list of arrays.
"""

from __future__ import annotations

import ctypes
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def main(task: dict[str, Any]) -> list[Array]:
    """The launch that `task` describes."""
    device = ctypes.CDLL(str(Path(task["driver"]) / "libcudart.so.13"), ctypes.RTLD_GLOBAL)
    places: list[Any] = []
    for argument in task["arguments"]:
        if isinstance(argument, np.generic):
            places.append(ctypes.create_string_buffer(argument.tobytes()))
            continue
        memory = ctypes.c_void_p()
        device.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(argument.nbytes))
        ctypes.memmove(memory, argument.tobytes(), argument.nbytes)
        places.append(memory)
    pointers = (ctypes.c_void_p * len(places))(*map(ctypes.addressof, places))
    triple = ctypes.c_uint * 3
    getattr(ctypes.CDLL(task["kernels"]), f"emulated_{task['kernel']}")(
        triple(*task["grid"]), triple(*task["block"]), ctypes.c_uint(task["shared"]), pointers
    )
    return [
        np.frombuffer(ctypes.string_at(place.value, argument.nbytes), argument.dtype).reshape(argument.shape)
        for place, argument in zip(places, task["arguments"], strict=True)
        if not isinstance(argument, np.generic)
    ]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_bytes(pickle.dumps(main(pickle.loads(place.read_bytes()))))
