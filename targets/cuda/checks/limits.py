"""What no launch may exceed: NVIDIA, "CUDA C++ Programming Guide", technical specifications per compute capability."""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from graphopt.targets.cuda.arch import MAX_THREADS, read_table
from graphopt.targets.cuda.checks.events import Loop, events
from graphopt.targets.cuda.checks.numbers import Unknown, evaluate

STATIC_SHARED = 48 << 10
_MOST = {"threadIdx.z": 64, "blockIdx.y": 65535, "blockIdx.z": 65535, "blockIdx.x": (1 << 31) - 1}


def check_limits(function: Any, arch: str) -> list[str]:
    """What of a lowered PrimFunc exceeds a limit; grids of open sizes are not known before they run."""
    return [*_launches(events(function)), *_shared(function, arch)]


def most_shared(arch: str) -> int:
    """Bytes of dynamic shared memory a block may have: a multiprocessor's, less the system's 1 kB (sm_75: none)."""
    return (read_table("archs.toml")[arch]["shared"] - (arch != "sm_75")) << 10


def _launches(body: list[Any], outer: dict[str, int] | None = None) -> list[str]:
    found: list[str] = []
    for event in body:
        if not isinstance(event, Loop):
            continue
        sizes = dict(outer or {})
        if event.thread:
            try:
                sizes[event.thread] = int(evaluate(event.extent, {}))
            except Unknown:
                sizes[event.thread] = 1
            size, most = sizes[event.thread], _MOST.get(event.thread, MAX_THREADS)
            if size > most:
                found.append(f"has {size} along {event.thread}, and {most} is the most")
            threads = math.prod(n for tag, n in sizes.items() if tag.startswith("threadIdx"))
            if threads > MAX_THREADS and event.thread.startswith("threadIdx"):
                found.append(f"has {threads} threads a block, and {MAX_THREADS} is the most")
        found += _launches(event.body, sizes)
    return found


def _shared(function: Any, arch: str) -> list[str]:
    bytes_of = {"shared": 0, "shared.dyn": 0}

    def allocation(found: Any) -> None:
        scope = str(found.buffer.scope())
        sizes = [size for size in found.buffer.shape if isinstance(size, tirx.IntImm)]
        if scope in bytes_of and len(sizes) == len(found.buffer.shape):
            elements = math.prod(map(int, sizes))
            bytes_of[scope] += elements * tvm.DataType(str(found.buffer.dtype)).itemsize

    tvm_ffi.structural_walk(function.body, (tirx.stmt.AllocBuffer, allocation))
    limits = {"shared": STATIC_SHARED, "shared.dyn": most_shared(arch)}
    return [
        f"has {bytes_of[scope]} bytes of {'dynamic' if 'dyn' in scope else 'static'} shared memory a block, "
        f"and {most} is the most on {arch}"
        for scope, most in limits.items()
        if bytes_of[scope] > most
    ]
