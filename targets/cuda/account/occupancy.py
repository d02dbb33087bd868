"""How many of a kernel's warps a multiprocessor can hold: arithmetic on what ptxas reports, nothing measured.

NVIDIA, "CUDA Occupancy Calculator": with ``w = ceil(threads / 32)`` warps a block, resident blocks are the least of ::

    B_max                                            of the architecture
    floor(W_max / w)                                 warps
    floor(floor4(65536 / ceil256(32 registers)) / w) registers, given to a warp by 256, to each of 4 schedulers alike
    floor(S / ceil128(shared + 1024))                shared memory; 1 kB a block is the system's (not on sm_75)

and the occupancy is ``blocks * w / W_max``.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from graphopt.targets.cuda.arch import WARP, read_table

REGISTERS = 1 << 16
"""32-bit registers of a multiprocessor, of every architecture in the table."""


@dataclasses.dataclass(frozen=True)
class Occupancy:
    """`blocks` resident on a multiprocessor; `share` of its warps that are used; `limit`: what allows no more."""

    blocks: int
    share: float
    limit: str


@functools.cache
def _limits() -> dict[str, dict[str, Any]]:
    return read_table("archs.toml")


def occupancy(arch: str, threads: int, registers: int, shared: int) -> Occupancy:
    """Of a kernel with `threads` a block, `registers` a thread and `shared` bytes a block, static and dynamic."""
    row = _limits()[arch]
    warps = -(-threads // WARP)
    of_registers = REGISTERS // _up(max(registers, 1) * WARP, 256) // 4 * 4
    reserved, unit = (0, 256) if arch == "sm_75" else (1024, 128)
    taken = _up(shared + reserved, unit)
    bounds = {
        "blocks": row["blocks"],
        "warps": row["warps"] // warps,
        "registers": of_registers // warps,
        "shared memory": row["shared"] * 1024 // taken if taken else row["blocks"],
    }
    blocks = min(bounds.values())
    limits = [name for name in ("warps", "registers", "shared memory", "blocks") if bounds[name] == blocks]
    return Occupancy(blocks, blocks * warps / row["warps"], limits[0])


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
