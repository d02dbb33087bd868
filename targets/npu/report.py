"""What the build has to say of the NPU: cycles, work and traffic per node and in total, and what stays on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.targets.npu.isa import EXECUTE, PARAMETER_BYTES, VECTOR, queue_of
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.place import TABLE_BYTES
from graphopt.targets.npu.program import Contract, Op, Program, Table, inputs_of
from graphopt.targets.npu.rewrite import Offloaded
from graphopt.targets.npu.stream import Stream
from graphopt.targets.npu.timing import add_up, schedule


def report(machine: Machine, offloaded: Sequence[Offloaded], left: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """JSON-able: totals, `nodes` on the NPU, `left` on the CPU with the reason. Regions run one after the other."""
    nodes = [node for item in offloaded for node in nodes_of(item, machine)]
    cycles = sum(schedule(item.stream, machine).cycles for item in offloaded)
    macs = sum(node["macs"] for node in nodes)
    return {
        "machine": machine.name,
        "summary": machine.summary,
        "simulated": True,
        "cycles": cycles,
        "milliseconds": cycles / (machine.clock_mhz * 1e3),
        "macs": macs,
        "utilisation": _utilisation(machine, macs, cycles),
        "dram_bytes": sum(node["dram_bytes"] for node in nodes),
        "regions": len(offloaded),
        "nodes": nodes,
        "left": [{"name": name, "op": op, "reason": reason} for name, (op, reason) in left.items()],
    }


def nodes_of(item: Offloaded, machine: Machine) -> list[dict[str, Any]]:
    """The source nodes of a region. A node's cycles end when array and vector unit are done with it, and begin where
    the node before ends: loads may have come earlier, stores may follow."""
    stream = item.stream
    by_name: dict[str, list[Op]] = {}
    for op in item.program.ops:
        by_name.setdefault(op.name, []).append(op)
    rows: list[dict[str, Any]] = []
    for (first, last), (start, end), span in zip(
        extents(stream), intervals(stream, machine), stream.spans, strict=True
    ):
        timing = add_up(stream.instructions[first:last], machine)
        ops = by_name[span.node]
        rows.append({
            "name": span.node,
            "op": ops[0].layer.op if isinstance(ops[0], Contract) else ops[0].op,
            "cycles": end - start,
            "macs": timing.macs,
            "utilisation": _utilisation(machine, timing.macs, end - start),
            "bound": timing.bound,
            "busy": timing.busy,
            "dram_bytes": sum(timing.read.values()) + timing.written,
            "read": timing.read,
            "written": timing.written,
            "compulsory_bytes": sum(_compulsory(op, item.program) for op in ops),
            "instructions": last - first,
        })  # fmt: skip
    return rows


def extents(stream: Stream) -> list[tuple[int, int]]:
    """The first word of each source node, and the one after its last."""
    starts = [span.first for span in stream.spans]
    return list(zip(starts, [*starts[1:], len(stream.instructions) - 1], strict=True))


def intervals(stream: Stream, machine: Machine) -> list[tuple[int, int]]:
    """The cycles from and to which array and vector unit work for each source node."""
    plan, words = schedule(stream, machine), stream.instructions
    before = 0
    found: list[tuple[int, int]] = []
    for first, last in extents(stream):
        queues = [queue_of(words[number]) for number in range(first, last)]
        main = EXECUTE if EXECUTE in queues else VECTOR
        ends = [plan.finish[first + at] for at, queue in enumerate(queues) if queue == main]
        found.append((before, max(before, *ends, 0)))
        before = found[-1][1]
    if found:
        found[-1] = found[-1][0], plan.cycles
    return found


def _compulsory(op: Op, program: Program) -> int:
    """Bytes that any schedule must move: constants, and what comes from or goes to the outside of the region."""
    outside = sum(_touched(op, view.tensor in program.inputs) for view in inputs_of(op)[:1])
    outside += sum(view.tensor.bytes for view in inputs_of(op)[1:] if view.tensor in program.inputs)
    outside += _elements(op) if op.output.tensor in program.outputs else 0
    if isinstance(op, Contract):
        g = op.layer.geometry
        return g.weight_bytes + PARAMETER_BYTES * g.groups * g.oc + outside
    return outside + (TABLE_BYTES if isinstance(op, Table) else 0)


def _touched(op: Op, outside: bool) -> int:
    """Bytes of the first operand that an output depends on, if it comes from outside."""
    if not outside:
        return 0
    return op.layer.geometry.touched_bytes if isinstance(op, Contract) else inputs_of(op)[0].tensor.bytes


def _elements(op: Op) -> int:
    n, c, h, w = op.output.shape
    return n * c * h * w * op.output.tensor.size


def _utilisation(machine: Machine, macs: int, cycles: int) -> float:
    return macs / (cycles * machine.array.macs_per_cycle) if cycles else 0.0
