"""A static estimate of a model's time on named GPUs. Nothing in it was measured: it says what bounds a kernel.

Williams, Waterman, Patterson, "Roofline" (2009). A call of a kernel takes the longest of ::

    2 * MACs / (peak * min(1, blocks / multiprocessors))     the peak of the units that its products run on
    bytes / bandwidth                                        inputs read and outputs written once each

so it is a lower bound: caches, latencies, launches and the clock under load only add to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from graphopt.targets.cuda.arch import read_table

NOTE = "an estimate from data sheets, a lower bound; not measured, not run on silicon; symbolic dimensions count as 1"


@dataclasses.dataclass(frozen=True)
class Work:
    """One function: `calls` in a run, each with `macs` and `moved` bytes, on a grid of `blocks`.

    `tensor_cores`: the type of the products that it does there ("float16", "int8"), as `gpus.toml` has their peaks.
    """

    function: str
    calls: int
    macs: int
    moved: int
    blocks: int
    tensor_cores: str | None = None


def estimates(archs: Sequence[str], works: Sequence[Work]) -> dict[str, Any]:
    """For each GPU of `gpus.toml` that code for `archs` runs on: the whole model's time, and each function's.

    ``{"A100": {"estimate": NOTE, "arch": "sm_80", "milliseconds": t, "kernels": [{"function", "calls",
    "microseconds" (of all its calls), "limit"}]}}``, the slowest first. `limit` is "memory", "arithmetic", "tensor
    cores", or "few blocks": arithmetic, on a grid too small for all multiprocessors.
    """
    found: dict[str, Any] = {}
    for name, gpu in read_table("gpus.toml").items():
        arch = code_for(gpu["arch"], archs)
        if arch is None:
            continue
        rows = sorted((_row(work, gpu) for work in works), key=lambda row: -row["microseconds"])
        total = sum(row["microseconds"] for row in rows) / 1e3
        found[name] = {"estimate": NOTE, "arch": arch, "milliseconds": total, "kernels": rows}
    return found


def code_for(gpu: str, archs: Sequence[str]) -> str | None:
    """Which of `archs` a GPU of architecture `gpu` runs: its own, else an older one of its family; of Jetson's its own.

    NVIDIA, "CUDA C++ Programming Guide", binary compatibility.
    """
    if gpu in archs:
        return gpu
    jetson = {"sm_87", "sm_110"}
    older = [a for a in archs if _number(a) // 10 == _number(gpu) // 10 and _number(a) < _number(gpu)]
    older = [] if gpu in jetson else [a for a in older if a not in jetson]
    return max(older, key=_number, default=None)


def _number(arch: str) -> int:
    return int(arch.removeprefix("sm_"))


def _row(work: Work, gpu: dict[str, Any]) -> dict[str, Any]:
    busy = min(1.0, max(work.blocks, 1) / gpu["sms"])  # open sizes count as 1, and half of that as no block
    peak = gpu[work.tensor_cores or "float32"] * 1e12
    arithmetic, memory = 2 * work.macs / (peak * busy), work.moved / (gpu["memory"] * 1e9)
    limit = "memory" if memory >= arithmetic else "few blocks" if busy < 1 else "arithmetic"
    limit = "tensor cores" if limit == "arithmetic" and work.tensor_cores else limit
    seconds = work.calls * max(arithmetic, memory)
    return {"function": work.function, "calls": work.calls, "microseconds": seconds * 1e6, "limit": limit}
