"""Static checks of scheduled kernels, before any machine code: bounds, races, launch limits. Nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphopt.errors import LoweringError
from graphopt.targets.cuda.checks.bounds import Bounds, check_bounds
from graphopt.targets.cuda.checks.limits import check_limits
from graphopt.targets.cuda.checks.lowered import lowered
from graphopt.targets.cuda.checks.races import Races, check_races

if TYPE_CHECKING:
    import tvm

    from graphopt.targets.lowering.origins import Origin

__all__ = ["check", "check_bounds", "check_limits", "check_races", "lowered"]


def check(
    functions: Mapping[str, Any], target: tvm.target.Target, origins: Mapping[str, Origin], arch: str
) -> dict[str, Any]:
    """The account of the checks of scheduled PrimFuncs, by name.

    ``{"accesses": n, "proved": n, "by_data": n, "open": {function: [accesses]}, "intervals": n, "unknown": n}``:
    accesses to memory, how many of them are proved to be within it for all sizes, how many depend on what is in memory,
    and which were neither proved nor found to be outside at any of the points tried; stretches between barriers looked
    at, and accesses to shared memory left out of that.

    Raises:
        LoweringError: naming each kernel with an access outside, a race, or more than a launch may have, its ONNX
            nodes, and what was found.
    """
    loops, synchronised = lowered(functions, target)
    bounds = {name: _bounds(function) for name, function in loops.items()}
    races = {name: _races(function) for name, function in synchronised.items()}
    wrong: list[str] = []
    for name, function in synchronised.items():
        faults = [*bounds[name].faults, *races[name].faults, *check_limits(function, arch)]
        if faults:
            nodes = ", ".join(origins[name].nodes) if name in origins else ""
            wrong.append(f"{name} (of {nodes or 'no node of its own'}) {'; '.join(faults[:2])}")
    if wrong:
        raise LoweringError(
            f"{len(wrong)} kernel(s) were scheduled wrongly for {arch}: {'. '.join(wrong)[:1500]}. "
            "This is a fault of graphopt or of TVM: report it; meanwhile compile the model for llvm."
        )
    proved, by_data = (sum(getattr(one, what) for one in bounds.values()) for what in ("proved", "by_data"))
    unproved = {name: one.open for name, one in bounds.items() if one.open}
    return {
        "accesses": proved + by_data + sum(map(len, unproved.values())),
        "proved": proved,
        "by_data": by_data,
        "open": unproved,
        "intervals": sum(one.intervals for one in races.values()),
        "unknown": sum(one.unknown for one in races.values()),
    }


_ANALYSIS = (TypeError, ValueError, RuntimeError, AttributeError)
"""What TVM's analysis raises for expressions it can't do: proves nothing, and is no reason not to compile."""


def _bounds(function: Any) -> Bounds:
    try:
        return check_bounds(function)
    except _ANALYSIS as error:
        return Bounds(open=[f"not analysed: {' '.join(str(error).split())[:120]}"])


def _races(function: Any) -> Races:
    try:
        return check_races(function)
    except _ANALYSIS:
        return Races(unknown=1)
