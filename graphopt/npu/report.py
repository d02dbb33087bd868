"""Where the cycles, bytes and joules of a compiled model go, node by node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphopt.npu.streams import Streams, of_file


def report(path: Path | str, machine: str | None = None, dims: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Of an artifact for the npu target, or of an ONNX model as `estimate` takes it. JSON-able::

        {"machine", "cycles", "ms", "macs", "utilisation", "dram_bytes", "energy_uj",
         "stalls": {"compute", "vector", "dma", "dependency"},    cycles; `bound` of a node is the class with most
         "bytes": {memory: bytes}, "energy": {component: uJ},
         "roofline": {"macs_per_cycle", "bytes_per_cycle": {memory: ...}},
         "occupancy": [[cycle, bytes of scratchpad in use], ...],
         "nodes": [{"name", "op", "cycles", "stalls", "bound", "intensity", "attainable", ...}], "left": [...]}

    `intensity`: multiply-accumulates per byte of DRAM, `attainable`: the multiply-accumulates per cycle that the
    roofline allows at that.

    Raises:
        ArtifactError: the artifact holds no NPU program, or is damaged.
        UsageError: no such machine; an input's dimension is open.
    """
    return of_streams(of_file(Path(path), machine, dims))


def of_streams(found: Streams) -> dict[str, Any]:
    """The report of streams; see `report`."""
    from graphopt.targets.npu.occupancy import occupancy
    from graphopt.targets.npu.profile import CLASSES
    from graphopt.targets.npu.report import nodes_of
    from graphopt.targets.npu.timing import schedule

    machine, nodes, used, before = found.machine, [], [], 0
    for stream in found.streams:
        nodes += nodes_of(stream, machine, found.ops)
        used += [[before + cycle, size] for cycle, size in occupancy(stream, machine)]
        before += schedule(stream, machine).cycles
    macs = sum(node["macs"] for node in nodes)
    bandwidth = {memory.name: memory.bytes_per_cycle for memory in machine.memories}
    for node in nodes:
        node |= _roof(node, machine.array.macs_per_cycle, bandwidth)
    return {
        "machine": machine.name,
        "cycles": before,
        "ms": before / machine.clock_mhz / 1e3,
        "macs": macs,
        "utilisation": macs / (before * machine.array.macs_per_cycle) if before else 0.0,
        "dram_bytes": sum(node["dram_bytes"] for node in nodes),
        "energy_uj": sum(node["energy_uj"] for node in nodes),
        "stalls": {kind: sum(node["stalls"][kind] for node in nodes) for kind in CLASSES},
        "bytes": {name: sum(node["bytes"][name] for node in nodes) for name in nodes[0]["bytes"]} if nodes else {},
        "energy": {name: sum(node["energy"][name] for node in nodes) for name in nodes[0]["energy"]} if nodes else {},
        "roofline": {"macs_per_cycle": machine.array.macs_per_cycle, "bytes_per_cycle": bandwidth},
        "occupancy": used,
        "nodes": nodes,
        "left": [{"name": name, "reason": reason} for name, reason in found.left.items()],
    }


def _roof(node: Mapping[str, Any], peak: int, bandwidth: Mapping[str, float]) -> dict[str, float | None]:
    """The roofline at this node: each memory outside gives its bytes no faster than its bandwidth."""
    least = max((node["bytes"][name] / rate for name, rate in bandwidth.items()), default=0.0)
    return {
        "intensity": node["macs"] / node["dram_bytes"] if node["dram_bytes"] else None,
        "attainable": min(peak, node["macs"] / least) if least else float(peak),
    }
