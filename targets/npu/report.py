"""What the build has to say of the NPU: cycles, work and traffic per node and in total, and what stays on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.rewrite import Offloaded
from graphopt.targets.npu.timing import Timing, time_stream


def report(machine: Machine, offloaded: Sequence[Offloaded], left: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """JSON-able: totals, `nodes` on the NPU, `left` on the CPU with the reason. The nodes run one after the other."""
    timings = [time_stream(item.stream, machine) for item in offloaded]
    nodes = [_node(machine, item, timing) for item, timing in zip(offloaded, timings, strict=True)]
    cycles, macs = sum(timing.cycles for timing in timings), sum(item.layer.geometry.macs for item in offloaded)
    return {
        "machine": machine.name,
        "summary": machine.summary,
        "simulated": True,
        "cycles": cycles,
        "milliseconds": cycles / (machine.clock_mhz * 1e3),
        "macs": macs,
        "utilisation": _utilisation(machine, macs, cycles),
        "dram_bytes": sum(node["dram_bytes"] for node in nodes),
        "nodes": nodes,
        "left": [{"name": name, "op": op, "reason": reason} for name, (op, reason) in left.items()],
    }


def _node(machine: Machine, item: Offloaded, timing: Timing) -> dict[str, Any]:
    layer, geometry = item.layer, item.layer.geometry
    return {
        "name": layer.name,
        "op": layer.op,
        "cycles": timing.cycles,
        "macs": geometry.macs,
        "utilisation": _utilisation(machine, geometry.macs, timing.cycles),
        "bound": timing.bound,
        "busy": timing.busy,
        "dram_bytes": sum(timing.read.values()) + timing.written,
        "read": timing.read,
        "written": timing.written,
        "compulsory_bytes": item.stream.sizes[0] + geometry.touched_bytes + geometry.output_bytes,
        "instructions": len(item.stream.instructions),
    }


def _utilisation(machine: Machine, macs: int, cycles: int) -> float:
    return macs / (cycles * machine.array.macs_per_cycle) if cycles else 0.0
