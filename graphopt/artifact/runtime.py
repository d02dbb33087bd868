"""TVM's runtime without its compiler: a library and its weights become something to call.

Only `tvm_ffi` and ``libtvm_runtime`` are loaded (about 0.2 s and 50 MB less than ``import tvm``); the same
process may import tvm before or after.

Threads: TVM keeps one worker pool per calling thread. graphopt sizes it for every core the process may use, or
for ``TVM_NUM_THREADS`` where that is set, leaves the threads unpinned unless ``TVM_BIND_THREADS=1``, and tells the
pool before each call how many workers that call may use.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tvm_ffi
from tvm_ffi.libinfo import load_lib_ctypes

from graphopt.artifact.store import aligned
from graphopt.artifact.tensors import carried, copy_to, leaves, to_array, to_tensor, view_of
from graphopt.errors import ArtifactError, DataError, UsageError

Array = np.ndarray[Any, Any]

_CPU, _CUDA, _POOLED = 1, 2, 2
_BIG_CORES = 1
_BOUND = "graphopt.bound"  # the entry with the weights in place
SHAPES = 16  # different input shapes after which memory kept for them is given back
_THREADS = threading.local()
_GPU = threading.RLock()  # while a first call captures a CUDA graph, no other thread may use the default stream


def available_threads() -> int:
    """How many threads a call can use at most: ``TVM_NUM_THREADS``, or the cores this process may run on."""
    named = os.environ.get("TVM_NUM_THREADS", "")
    if named.isdigit() and int(named) > 0:
        return int(named)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def start() -> None:
    """Load TVM's runtime into the process."""
    os.environ["TVM_NUM_THREADS"] = str(available_threads())
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    _load("tvm_runtime", "RTLD_GLOBAL")
    _load("tvm_runtime_extra", "RTLD_LOCAL")  # sort, top-k, random


def _load(name: str, mode: str) -> None:
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise ArtifactError("apache-tvm is not installed, and its runtime executes artifacts: pip install apache-tvm.")
    load_lib_ctypes("tvm", name, mode, extra_lib_paths=[Path(spec.submodule_search_locations[0]) / "lib"])


@functools.cache
def start_cuda() -> None:
    """Load TVM's CUDA runtime and see that there is a device.

    Raises:
        ArtifactError: no driver, no CUDA runtime library, or no device.
    """
    start()
    need = "this artifact runs on an NVIDIA GPU, and"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ArtifactError(
            f"{need} this machine has no CUDA driver (libcuda.so.1): run it where there is one, "
            "or compile the model with --target llvm."
        ) from error
    _load_cuda_runtime()
    try:
        _load("tvm_runtime_cuda", "RTLD_GLOBAL")
    except (OSError, RuntimeError) as error:
        raise ArtifactError(
            f"{need} TVM's CUDA runtime can't be loaded ({_paragraph(error)}): "
            "install CUDA 13's runtime with pip install 'graphopt[cuda]'."
        ) from error
    if not tvm_ffi.get_global_func("runtime.GetDeviceAttr")(_CUDA, 0, 0):
        raise ArtifactError(f"{need} the CUDA driver finds none on this machine.")


def _load_cuda_runtime() -> None:
    """Load libcudart from the PyPI package or the toolkit, where the system's loader would not find it."""
    spec = importlib.util.find_spec("nvidia")
    roots = [] if spec is None else list(spec.submodule_search_locations or [])
    places = [*(folder for root in roots for folder in Path(root).glob("cu13/lib")), Path("/usr/local/cuda/lib64")]
    for path in (place / "libcudart.so.13" for place in places):
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            return


def check_threads(threads: int | None) -> int:
    """The number of threads to use; all there are for None.

    Raises:
        UsageError: not between 1 and `available_threads()`.
    """
    most = available_threads()
    if threads is None:
        return most
    if not 1 <= threads <= most:
        raise UsageError(
            f"{threads} threads asked for, and between 1 and {most} can be had here "
            "(the cores of this process, or TVM_NUM_THREADS)."
        )
    return threads


def limit_threads(threads: int) -> None:
    """Have TVM's parallel loops that this thread runs from now on use so many threads."""
    if getattr(_THREADS, "number", None) != threads:
        start()
        tvm_ffi.get_global_func("runtime.config_threadpool")(_BIG_CORES, threads)
        _THREADS.number = threads


class Session:
    """A loaded library with its weights in place. Not for concurrent calls: the caller holds a lock."""

    def __init__(self, library: memoryview, device: Literal["cpu", "cuda"], entry: str, threads: int | None) -> None:
        """Load `library` (bytes of a shared library with a Relax VM executable).

        Raises:
            ArtifactError: it can't be loaded, has no such entry, or the device is missing.
            UsageError: `threads` can't be had.
        """
        start()
        if device == "cuda":
            start_cuda()
        self.threads = check_threads(threads)
        self._device = tvm_ffi.device("cuda", 0) if device == "cuda" else None
        self._turn = _GPU if device == "cuda" else contextlib.nullcontext()
        self._name = entry
        self.weights: list[Any] = []
        self._kept: dict[int, tuple[Array, Any]] = {}
        self._shapes: set[tuple[int, tuple[int, ...]]] = set()
        try:
            with self._turn, _compiler() if device == "cuda" else contextlib.nullcontext():
                self.library = _load_library(library)
                machine = self.library["vm_load_executable"]()
            kinds = [_CUDA, _CPU] if device == "cuda" else [_CPU]
            machine["vm_initialization"](*(setting for kind in kinds for setting in (kind, 0, _POOLED)))
            self._entry: Callable[..., Any] = machine[entry]
        except (RuntimeError, OSError, AttributeError) as error:
            raise ArtifactError(f"TVM can't load the compiled library: {_paragraph(error)}.") from error
        self._machine = machine

    def set_weights(self, weights: Sequence[Array]) -> None:
        """Give the tensors that follow the inputs in every call; on the CPU they are used where they lie."""
        with self._turn:
            self.weights = [self._place(array) for array in weights]
        self._entry = self._bound(self._name)

    def instrument(self, around: Callable[..., None] | None) -> None:
        """From now on call ``around(function, name, before, result, *arguments)`` before and after each kernel."""
        self._machine["set_instrument"](around)
        by_kernel = f"{self._name}_by_kernel"
        kept = around is not None and self._machine.implements_function(by_kernel)
        self._entry = self._bound(by_kernel if kept else self._name)

    def _bound(self, entry: str) -> Callable[..., Any]:
        """The function `entry` with the weights in place."""
        self._machine["save_function"](entry, _BOUND, True, *self.weights)
        return self._machine[_BOUND]

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once; every result is a fresh array.

        Raises:
            DataError: the program refused the inputs' shapes.
        """
        limit_threads(self.threads)
        with self._turn:
            tensors = [self._input(index, array) for index, array in enumerate(inputs)]
            try:
                result = self._entry(*tensors)
            except (RuntimeError, ValueError, TypeError) as error:
                raise refused(error) from error
            return [to_array(item) for item in leaves(result)]

    def between(self, inputs: Sequence[Array]) -> list[Array]:
        """As a call, without copies where that can be: inputs are read where they lie, results are views."""
        limit_threads(self.threads)
        with self._turn:
            try:
                result = self._entry(*map(self._place, inputs))
            except (RuntimeError, ValueError, TypeError) as error:
                raise refused(error) from error
            return [view_of(item) for item in leaves(result)]

    def _input(self, index: int, array: Array) -> Any:
        """The array as a tensor. On the CPU it is copied to a place kept for it: few arrays are aligned as needed."""
        array = carried(array)
        place, tensor = self._kept.get(index, (None, None))
        if place is None or place.shape != array.shape or place.dtype != array.dtype:
            self._meet(index, array.shape)
            if self._device is not None or array.size == 0:
                return self._place(array)
            place = aligned(array)
            tensor = to_tensor(place)
            self._kept[index] = place, tensor
        np.copyto(place, array)
        return tensor

    def _meet(self, index: int, shape: tuple[int, ...]) -> None:
        """TVM keeps freed memory by its exact size for later calls: let go of it once many shapes were met."""
        self._shapes.add((index, shape))
        if len(self._shapes) > SHAPES:
            tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()
            self._shapes.clear()

    def _place(self, array: Array) -> Any:
        tensor = to_tensor(array)
        return tensor if self._device is None else copy_to(tensor, self._device)


def _compiler() -> contextlib.AbstractContextManager[None]:
    """Makes machine code of the CUDA C that a GPU artifact carries when it was built without a CUDA compiler."""
    return importlib.import_module("graphopt.targets.cuda.runtime").compiling()


def _load_library(library: memoryview) -> Any:
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / f"library{suffix}"
        path.write_bytes(library)
        return tvm_ffi.load_module(path)  # stays mapped after the file is gone


def refused(error: BaseException) -> DataError:
    """What a program says of inputs that it can't run on; sizes are compared where the model brings them together."""
    if "bad_alloc" in str(error):
        return DataError("the sizes that the model computes from these inputs don't fit memory, or are negative.")
    sizes = re.search(r"\((\d+) vs\. (\d+)\).*match_cast", str(error), re.DOTALL)
    if sizes is None:
        return DataError(f"the compiled program refused its inputs: {_paragraph(error)}.")
    return DataError(
        f"the sizes of the inputs don't fit together: inside the model {sizes[1]} meets {sizes[2]} where both must be "
        "equal (or one of them 1). onnxruntime refuses such inputs too."
    )


def _paragraph(error: BaseException) -> str:
    return " ".join(str(error).split())[:400].rstrip(".")
