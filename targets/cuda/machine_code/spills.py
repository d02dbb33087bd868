"""Kernels that spill are compiled again with the compiler free to give their threads more registers.

ptxas aims at several blocks on a multiprocessor and may put a register or two into memory for that. A minimum of one
block in ``__launch_bounds__`` (NVIDIA, "CUDA C++ Programming Guide") takes the aim away; nothing else changes.
"""

from __future__ import annotations

import re

from graphopt.targets.cuda.machine_code.compiler import Binary, Route, compile_source
from graphopt.targets.cuda.machine_code.ptxas import parse


def compile_without_spills(source: str, arch: str, route: Route | None = None) -> Binary:
    """As `compile_source`; a second time where kernels spill, and what then spills less.

    Raises:
        LoweringError: as `compile_source`.
    """
    first = compile_source(source, arch, route)
    spilling = spills(first)
    if not spilling:
        return first
    second = compile_source(roomier(source, spilling), arch, route)
    return min((first, second), key=lambda binary: sum(spills(binary).values()))


def spills(binary: Binary) -> dict[str, int]:
    """Bytes of code's spill stores and loads of each kernel that has any."""
    found = {use.name: use.spill_stores + use.spill_loads for use in parse(binary.log)}
    return {name: count for name, count in found.items() if count}


def roomier(source: str, kernels: dict[str, int]) -> str:
    """CUDA C with ``__launch_bounds__(n, 1)`` for `kernels` that had ``__launch_bounds__(n)``."""
    names = "|".join(map(re.escape, kernels))
    return re.sub(rf"__launch_bounds__\((\d+)\)(?= (?:{names})\()", r"__launch_bounds__(\1, 1)", source)
