"""The GPU architecture a model is compiled for, and which GPUs this machine has."""

from __future__ import annotations

import ctypes
import functools
import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from graphopt.errors import UsageError

if TYPE_CHECKING:
    import tvm

# Of every architecture in the table: threads of a block, and bytes of shared memory a block has without asking.
MAX_THREADS, SHARED_BYTES, WARP = 1024, 48 << 10, 32


def read_table(name: str) -> dict[str, dict[str, Any]]:
    """A data file of this package: `archs.toml` or `gpus.toml`."""
    return tomllib.loads(resources.files("graphopt.targets.cuda").joinpath(name).read_text())


@functools.cache
def known_archs() -> dict[str, list[str]]:
    """The architectures in `archs.toml`, with GPUs that have them."""
    return {arch: row["gpus"] for arch, row in read_table("archs.toml").items()}


def check_archs(archs: str | Sequence[str]) -> str | tuple[str, ...]:
    """`archs` as given; UsageError when CUDA does not compile for one of them, or one is there twice, or none."""
    listed = as_tuple(archs)
    for arch in listed:
        if arch not in known_archs():
            known = ", ".join(f"{name} ({gpus[0]})" for name, gpus in known_archs().items())
            raise UsageError(f"the cuda target knows no architecture {arch!r}; it knows {known}.")
    if not listed or len(set(listed)) < len(listed):
        raise UsageError("the cuda target wants each architecture once, as in cuda{arch=[sm_80,sm_90]}.")
    return archs if isinstance(archs, str) else listed


def as_tuple(archs: str | Sequence[str]) -> tuple[str, ...]:
    """One architecture or several, the oldest first."""
    listed = [archs] if isinstance(archs, str) else archs
    return tuple(sorted(listed, key=lambda arch: int(arch.removeprefix("sm_")) if arch in known_archs() else 0))


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
