"""The GPU architecture a model is compiled for, and which GPUs this machine has."""

from __future__ import annotations

import ctypes
import functools
import tomllib
from importlib import resources
from typing import TYPE_CHECKING

from graphopt.errors import UsageError

if TYPE_CHECKING:
    import tvm

# Of every architecture in the table: threads of a block, and bytes of shared memory a block has without asking.
MAX_THREADS, SHARED_BYTES, WARP = 1024, 48 << 10, 32


@functools.cache
def known_archs() -> dict[str, list[str]]:
    """The architectures in `archs.toml`, with GPUs that have them."""
    text = resources.files("graphopt.targets.cuda").joinpath("archs.toml").read_text()
    return {arch: row["gpus"] for arch, row in tomllib.loads(text).items()}


def check_arch(arch: str) -> str:
    """`arch` itself; UsageError when CUDA does not compile for it."""
    if arch not in known_archs():
        listed = ", ".join(f"{name} ({gpus[0]})" for name, gpus in known_archs().items())
        raise UsageError(f"the cuda target knows no architecture {arch!r}; it knows {listed}.")
    return arch


def tvm_target(arch: str) -> tvm.target.Target:
    """TVM's description of a GPU of `arch`, driven by this machine's kind of CPU."""
    import tvm

    from graphopt.targets.llvm.cpu import machine_triple

    return tvm.target.Target(
        {
            "kind": "cuda",
            "arch": arch,
            "max_threads_per_block": MAX_THREADS,
            "max_shared_memory_per_block": SHARED_BYTES,
            "thread_warp_size": WARP,
            "host": {"kind": "llvm", "mtriple": machine_triple()},
        }
    )


@functools.cache
def devices() -> list[str]:
    """The names of the GPUs the CUDA driver finds on this machine; empty without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found: list[str] = []
    for index in range(count.value):
        driver.cuDeviceGetName(name, len(name), index)
        found.append(name.value.decode())
    return found
