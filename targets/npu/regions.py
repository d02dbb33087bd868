"""Which candidates go to the NPU, and in which regions: a minimum cut, then levels.

Running a candidate on the CPU costs its time there, on the NPU its cycles; an edge from one side to the other costs
the transfer of its bytes. The cheapest placement of all is a minimum s-t cut. What is left is split into levels: a
value that goes through the CPU comes back in a later region, so regions are convex.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import networkx as nx
import onnx_ir as ir

from graphopt.targets.npu import numerics
from graphopt.targets.npu.candidate import Candidate, shape_of
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.operators import contraction, find
from graphopt.targets.npu.partition import CANDIDATES, RefusedError
from graphopt.targets.npu.place import tile_of
from graphopt.targets.npu.program import Contract, Tensor, whole
from graphopt.targets.npu.tables import Tables
from graphopt.targets.npu.tiling import Tiling

MACS_PER_ELEMENT = 20
"""Multiply-adds that a CPU's integer kernels do in the time that others need for an element."""
CROSSING_BYTES = 2e9
CROSSING = 5e-6
"""Bytes per second, and seconds for each tensor, between CPU and NPU."""
Left = dict[str, tuple[str, str]]


def candidates(model: ir.Model, machine: Machine) -> tuple[list[Candidate], Left]:
    """What the NPU could compute, in the graph's order, and for each other node of such kinds the reason why not."""
    found: dict[ir.Node, Candidate] = {}
    left: Left = {}
    taken: set[ir.Node] = set()
    tables: Tables = {}
    for node in model.graph:
        if node.domain != "":
            continue
        try:
            if node.op_type in CANDIDATES:
                candidate = contraction(node)
                _fits(candidate, machine)
            elif node.op_type == "QuantizeLinear" and node not in taken and node.inputs[0] is not None:
                if node.inputs[0].producer() is None:
                    continue
                candidate = find(node, tables)
                _fits(candidate, machine)
            else:
                continue
        except (RefusedError, ValueError) as reason:
            at = node if node.op_type in CANDIDATES else node.inputs[0].producer()  # pyright: ignore[reportOptionalMemberAccess]
            if at is not None and at.op_type != "DequantizeLinear" and str(at.name) not in left:
                left[str(at.name)] = at.op_type, str(reason)
            continue
        if node.op_type in CANDIDATES:
            taken.update(candidate.nodes)
        found[candidate.nodes[-1]] = candidate
        left.pop(candidate.name, None)
    for node in model.graph.all_nodes():
        if node.graph is not model.graph and node.domain == "" and node.op_type in CANDIDATES:
            left[str(node.name)] = node.op_type, "it stands in a branch or a loop"
    return list(found.values()), left


def _fits(candidate: Candidate, machine: Machine) -> None:
    """Raises `ValueError` where the NPU can't hold or scale it, `RefusedError` where its shape is open."""
    for value in (*candidate.sources, candidate.result):
        if math.prod(shape_of(value)) == 0:
            raise RefusedError("it is empty")
    if candidate.macs:
        op = _alone(candidate)
        tile_of(op, machine, machine.scratchpad_bytes, set())
        numerics.pack_parameters(op.layer.bias, op.layer.requantise.multiplier, machine.requantise)


def _alone(candidate: Candidate) -> Contract:
    raw = candidate.unit is not None
    views = [whole(Tensor("input", shape_of(value))) for value in candidate.sources]
    (op,) = candidate.ops(views, whole(Tensor("output", shape_of(candidate.result), 4 if raw else 1)))
    assert isinstance(op, Contract)
    return op


def choose(found: Sequence[Candidate], machine: Machine, cpu_gmacs: float, left: Left) -> list[Candidate]:
    """The candidates that are worth it beside a CPU of `cpu_gmacs` 1e9 integer multiply-adds per second; the reason
    for others is added to `left`."""
    graph = nx.DiGraph()  # of numbers: the cut must not depend on where objects lie in memory
    producer = {candidate.result: number for number, candidate in enumerate(found)}
    for number, candidate in enumerate(found):
        graph.add_edge("npu", number, capacity=_cpu_seconds(candidate, cpu_gmacs))
        graph.add_edge(number, "cpu", capacity=_npu_seconds(candidate, machine))
        for value in candidate.sources:
            crossing = CROSSING + math.prod(shape_of(value)) / CROSSING_BYTES
            before = producer.get(value)
            if before is None:  # from the CPU
                graph.add_edge(number, "cpu", capacity=graph[number]["cpu"]["capacity"] + crossing)
            else:
                graph.add_edge(before, number, capacity=crossing)
                graph.add_edge(number, before, capacity=crossing)
    if not found:
        return []
    _, (near, _) = nx.minimum_cut(graph, "npu", "cpu")
    kept = needed([candidate for number, candidate in enumerate(found) if number in near])
    for number, candidate in enumerate(found):
        if number not in near:
            left[candidate.name] = candidate.anchor.op_type, "the CPU is faster at it, transfers counted"
    return kept


def needed(found: list[Candidate]) -> list[Candidate]:
    """`found` without those whose results only stand inside others, which work them out themselves."""
    owners: dict[ir.Node, list[Candidate]] = {}
    kept: list[Candidate] = []
    for candidate in reversed(found):
        if candidate.unit is not None or _read(candidate, owners):
            kept.insert(0, candidate)
            for node in candidate.nodes:
                owners.setdefault(node, []).append(candidate)
    return kept


def _read(candidate: Candidate, owners: dict[ir.Node, list[Candidate]]) -> bool:
    if candidate.result.is_graph_output():
        return True
    for use in candidate.result.uses():
        readers = [u.node for value in use.node.outputs for u in value.uses()]
        if use.node.op_type != "DequantizeLinear" or any(v.is_graph_output() for v in use.node.outputs):
            return True
        for reader in readers:
            if reader not in owners or any(candidate.result in owner.sources for owner in owners[reader]):
                return True
    return False


def _cpu_seconds(candidate: Candidate, gmacs: float) -> float:
    return (candidate.macs + MACS_PER_ELEMENT * math.prod(shape_of(candidate.result))) / (gmacs * 1e9)


def _npu_seconds(candidate: Candidate, machine: Machine) -> float:
    if candidate.macs:
        tile = tile_of(_alone(candidate), machine, machine.scratchpad_bytes, set())
        assert isinstance(tile, Tiling)
        cycles = tile.cycles
    else:
        cycles = sum(math.prod(shape_of(v)) for v in (*candidate.sources, candidate.result)) // (
            2 * machine.vector.elements_per_cycle
        )
    return cycles / (machine.clock_mhz * 1e6)


def levels(model: ir.Model, chosen: Sequence[Candidate]) -> list[list[Candidate]]:
    """The candidates of each region, in order; regions are in the order in which they can run."""
    owner = {candidate.nodes[-1]: candidate for candidate in chosen}
    inside = {node for candidate in chosen for node in candidate.nodes}
    level: dict[ir.Value, int] = {}  # the first region that may read a value without leaving the NPU
    regions: dict[int, list[Candidate]] = {}
    on_npu = {candidate.result for candidate in chosen}
    for node in model.graph:
        candidate = owner.get(node)
        if candidate is not None:
            at = max((level.get(value, 0) for value in candidate.sources), default=0)
            regions.setdefault(at, []).append(candidate)
            level[candidate.result] = at
        if node in inside:
            continue
        at = 0
        for value in _reads(node):
            at = max(at, level.get(value, 0) + (value in on_npu))
        level.update(dict.fromkeys(node.outputs, at))
    return [regions[at] for at in sorted(regions)]


def _reads(node: ir.Node) -> list[ir.Value]:
    """What `node` and its branches read."""
    values = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            values += [v for inner in attribute.as_graph().all_nodes() for v in inner.inputs if v is not None]
    return values
