"""What there is to say of streams: cycles, work, traffic and energy per source node and in total, and what is left.

A node's cycles are those it owns (see `profile`): `stalls` has them by class, `bound` is the class with most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.targets.npu.energy import components
from graphopt.targets.npu.isa import PARAMETER_BYTES
from graphopt.targets.npu.machine import BareArray, Machine
from graphopt.targets.npu.profile import CLASSES, Account, profile
from graphopt.targets.npu.program import Contract, Op, Program, Tensor, View, Window, inputs_of
from graphopt.targets.npu.rewrite import Offloaded
from graphopt.targets.npu.stream import Stream
from graphopt.targets.npu.weights import least_bytes

Node = dict[str, Any]


def report(machine: Machine, offloaded: Sequence[Offloaded], left: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """JSON-able: totals, `nodes` on the NPU, `left` on the CPU with the reason. Streams run one after the other."""
    nodes = [node for item in offloaded for node in nodes_of_program(item, machine)]
    found = totals(machine, nodes)
    return {
        "machine": machine.name,
        "summary": machine.summary,
        "simulated": True,
        **found,
        "milliseconds": found["cycles"] / (machine.clock_mhz * 1e3),
        "stalls": {kind: sum(node["stalls"][kind] for node in nodes) for kind in CLASSES},
        "regions": len(offloaded),
        "nodes": nodes,
        "left": [{"name": name, "op": op, "reason": reason} for name, (op, reason) in left.items()],
    }


def note(found: Mapping[str, Any]) -> str:
    """The report in one line: how many operators are on the NPU, and the commonest reasons why others are not."""
    reasons: dict[str, list[str]] = {}
    for item in found["left"]:
        reasons.setdefault(item["reason"], []).append(item["name"])
    ranked = sorted(reasons.items(), key=lambda entry: -len(entry[1]))
    shown = [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} ({why})" for why, names in ranked[:3]
    ]
    rest = f", {len(ranked) - 3} further reasons in the report" if len(ranked) > 3 else ""
    done = len(found["nodes"])
    said = f"{done} of {done + len(found['left'])} operators on the NPU"
    return f"{said}; on the CPU: {', '.join(shown)}{rest}" if shown else said


def totals(machine: Machine | BareArray, nodes: Sequence[Node]) -> dict[str, Any]:
    """Sums over `nodes`."""
    cycles, macs = sum(node["cycles"] for node in nodes), sum(node["macs"] for node in nodes)
    return {
        "cycles": cycles,
        "macs": macs,
        "utilisation": macs / (cycles * machine.array.macs_per_cycle) if cycles else 0.0,
        "dram_bytes": sum(node["dram_bytes"] for node in nodes),
        "energy_uj": sum(node["energy_uj"] for node in nodes),
    }


def nodes_of_program(item: Offloaded, machine: Machine) -> list[Node]:
    """The nodes of one stream, with the DRAM bytes that each can't do without."""
    ops = {op.name: op.layer.op if isinstance(op, Contract) else op.op for op in item.program.ops}
    least = compulsory(item.program, coded=machine.decoder is not None)
    return [{**node, "compulsory_bytes": least[node["name"]]} for node in nodes_of(item.stream, machine, ops)]


def nodes_of(stream: Stream, machine: Machine, ops: Mapping[str, str]) -> list[Node]:
    """The source nodes of one stream; one that takes several of its spans is one. `ops`: the operator of each."""
    accounts: dict[str, list[Account]] = {}
    for account in profile(stream, machine):
        accounts.setdefault(account.name, []).append(account)
    return [_node(machine, name, ops[name], group) for name, group in accounts.items()]


def _node(machine: Machine, name: str, op: str, accounts: Sequence[Account]) -> Node:
    stalls = {kind: sum(account.cycles[kind] for account in accounts) for kind in CLASSES}
    cycles, macs = sum(stalls.values()), sum(account.events.macs for account in accounts)
    read = {space: sum(account.read[space] for account in accounts) for space in accounts[0].read}
    written = sum(account.written for account in accounts)
    energy: dict[str, float] = {}
    moved = {memory: sum(account.events.memory[memory] for account in accounts) for memory in accounts[0].events.memory}
    for account in accounts:
        for component, value in components(machine.energy, account.events).items():
            energy[component] = energy.get(component, 0.0) + value
    return {
        "name": name,
        "op": op,
        "cycles": cycles,
        "macs": macs,
        "utilisation": macs / (cycles * machine.array.macs_per_cycle) if cycles else 0.0,
        "bound": max(stalls, key=lambda kind: stalls[kind]),
        "stalls": stalls,
        "busy": {queue: sum(account.busy[queue] for account in accounts) for queue in accounts[0].busy},
        "dram_bytes": sum(read.values()) + written,
        "read": read,
        "written": written,
        "bytes": moved,
        "energy_uj": sum(energy.values()),
        "energy": energy,
        "instructions": sum(account.words for account in accounts),
    }


def compulsory(program: Program, *, coded: bool = False) -> dict[str, int]:
    """DRAM bytes that each node can't do without: its constants, and inputs and outputs of the whole program.

    An input that several nodes read counts for the first of them. `coded`: weights may be compressed.
    """
    fresh: set[Tensor] = set(program.inputs)
    least: dict[str, int] = {}
    for op in program.ops:
        needed = _constants(op, coded=coded)
        for view in inputs_of(op):
            if view.tensor in fresh:
                fresh.discard(view.tensor)
                needed += _touched(op, view)
        if op.output.tensor in program.outputs:
            needed += math.prod(op.output.shape) * op.output.tensor.size
        least[op.name] = least.get(op.name, 0) + needed
    return least


def _touched(op: Op, view: View) -> int:
    """Bytes of an input that at least one output depends on."""
    if isinstance(op, Contract):
        return op.layer.geometry.touched_bytes
    if isinstance(op, Window):
        n, c, *size = view.shape
        axes = zip(size, op.output.shape[2:], op.kernel, op.stride, op.pad, strict=True)
        spans = [min(s, (o - 1) * step + k - pad) if k >= step else o for s, o, k, step, pad in axes]
        return n * c * math.prod(spans)
    return math.prod(view.shape)


def _constants(op: Op, *, coded: bool) -> int:
    if not isinstance(op, Contract):
        return 0
    geometry = op.layer.geometry
    weights = geometry.weight_bytes
    if coded and geometry.weight_bits == 8:
        weights = least_bytes(op.layer.weights, op.layer.weight_zero)
    return weights + PARAMETER_BYTES * geometry.groups * geometry.oc
