"""Cycles, traffic and energy of a model on a machine, from the stream the compiler would emit for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphopt.api import open_model
from graphopt.npu.prepare import fix_sizes, quantized

if TYPE_CHECKING:
    from graphopt.api import AnyModel


def estimate(model: AnyModel, machine: str = "edge", dims: Mapping[str, int] | None = None) -> dict[str, Any]:
    """What `model` would cost on `machine` (a preset or a TOML file); a float model is taken as if quantized to int8.

    An open batch counts as 1; other open dimensions need `dims`. Returns, JSON-able::

        {"cycles", "macs", "utilisation", "dram_bytes", "energy_uj", "nodes": [{"name", "op", "cycles", "macs", ...}]}

    of the nodes on the NPU; those that it leaves to the CPU are among the nodes too, with 0 cycles, 0 macs and the
    `reason`. A machine with memories is simulated from its command stream. A bare array (`systolic-...`) has none:
    its cycles are SCALE-Sim's compute cycles, its bytes what any schedule must move.

    Raises:
        UsageError: no such machine, its description is wrong, or a dimension of an input is open.
        ModelError: the model can't be read, or `dims` do not fit it.
    """
    from graphopt.targets.npu.estimate import estimate_quantized
    from graphopt.targets.npu.machine import load_description

    description = load_description(machine)
    opened = open_model(model, dims)
    fix_sizes(opened)
    return estimate_quantized(quantized(opened), description)
