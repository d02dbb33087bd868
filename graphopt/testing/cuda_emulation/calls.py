"""The process in which functions of a compiled model are called on the emulated device: ``python -m ... TASK``.

The task is a pickled dict: ``driver``, a folder with the driver's two libraries; ``library``, the path of the model's;
``calls``, paths of pickled `graphopt.testing.cuda_emulation.host.Call`. Beside each of these is left what it gave, a
pickled list of arrays, as soon as it is done.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from graphopt.artifact import runtime, tensors
from graphopt.testing.cuda_emulation.host import Call
from graphopt.testing.cuda_emulation.worker import start

Array = np.ndarray[Any, Any]


def main(task: dict[str, Any]) -> None:
    """Each call of the task in turn."""
    start(task["driver"])
    runtime.start_cuda()
    from graphopt.targets.cuda.runtime import compiling

    with compiling():
        library = tvm_ffi.load_module(task["library"])
    for place in map(Path, task["calls"]):
        call: Call = pickle.loads(place.read_bytes())
        function = library.get_function(call.function, query_imports=True)
        place.with_suffix(".result").write_bytes(pickle.dumps(_give(function, call)))


def _give(function: Any, call: Call) -> list[Array]:
    device = tvm_ffi.device("cuda", 0)
    given: list[Any] = []
    for index, argument in enumerate(call.arguments):
        if not isinstance(argument, np.ndarray):
            given.append(argument)
        elif index in call.written:
            given.append(tensors.allocate(argument.shape, argument.dtype.name, device))
        else:
            given.append(tensors.copy_to(tensors.to_tensor(argument), device))
    function(*given)
    return [tensors.to_array(given[index]) for index in call.written]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_bytes(pickle.dumps(main(pickle.loads(place.read_bytes()))))
