"""Which nodes run together: parts that are lowered and parts left to onnxruntime, in turns.

Every node gets a stage, ``stage(n) = max over producers p of stage(p) + (p runs elsewhere than n)``, even for those
that are lowered, odd for those on onnxruntime. A stage is a part: since stages never fall along an edge, parts are
convex and can run in the order of their stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import onnx_ir as ir

from graphopt.debug.nodes import Node, build, table
from graphopt.graph import cost

LEAST = 4
"""Nodes from which a part without any multiply-accumulates is worth a library of its own."""


@dataclasses.dataclass(frozen=True)
class Section:
    """Nodes of one part, by their place in the graph; the values it takes from outside and gives to others."""

    lowered: bool
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def partition(model: ir.Model, left: Collection[str]) -> list[Section]:
    """The parts of `model`, in order, where the nodes named in `left` run on onnxruntime and the others are lowered.

    Lowered parts with nothing to gain, short ones without multiply-accumulates beside onnxruntime's, join those.
    """
    rows, _ = table(model)
    lowered = [row.name not in left for row in rows]
    stages = _joined(rows, _stages(rows, lowered))
    for stage in {s for s, here in zip(stages, lowered, strict=True) if here}:
        nodes = [k for k, s in enumerate(stages) if s == stage]
        if not all(lowered) and len(nodes) < LEAST and not any(cost.macs(rows[k].node) for k in nodes):
            for k in nodes:
                lowered[k] = False
    stages = _joined(rows, _stages(rows, lowered))
    return [_section(model, rows, stages, stage) for stage in sorted(set(stages))]


def _producers(rows: Sequence[Node]) -> list[set[int]]:
    made = {name: k for k, row in enumerate(rows) for name in row.outputs}
    return [{made[name] for name in row.inputs if name in made} for row in rows]


def _stages(rows: Sequence[Node], lowered: Sequence[bool]) -> list[int]:
    stages: list[int] = []
    for k, producers in enumerate(_producers(rows)):
        own = 0 if lowered[k] else 1
        stages.append(max((stages[p] + (lowered[p] != lowered[k]) for p in producers), default=own))
        stages[k] = max(stages[k], own)
    return stages


def _joined(rows: Sequence[Node], stages: list[int]) -> list[int]:
    """Move whole stages later, onto the next of their kind, where what reads them lets them."""
    consumers: list[set[int]] = [set() for _ in rows]
    for k, producers in enumerate(_producers(rows)):
        for p in producers:
            consumers[p].add(k)
    for stage in range(max(stages, default=0) - 1):
        nodes = [k for k, s in enumerate(stages) if s == stage]
        free = all(stages[c] != stage + 1 for k in nodes for c in consumers[k])
        if nodes and stage + 2 in stages and free:
            stages = [stage + 2 if s == stage else s for s in stages]
    return stages


def _section(model: ir.Model, rows: Sequence[Node], stages: Sequence[int], stage: int) -> Section:
    inside = [k for k, s in enumerate(stages) if s == stage]
    made = {name for k in inside for name in rows[k].outputs}
    constants = set(model.graph.initializers)
    reads = dict.fromkeys(name for k in inside for name in rows[k].inputs)
    wanted = {name for k, row in enumerate(rows) if stages[k] != stage for name in row.inputs}
    wanted |= {str(value.name) for value in model.graph.outputs}
    return Section(
        lowered=stage % 2 == 0,
        nodes=tuple(inside),
        inputs=tuple(name for name in reads if name not in made and name not in constants),
        outputs=tuple(dict.fromkeys(name for k in inside for name in rows[k].outputs if name in wanted)),
    )


def first(model: ir.Model, count: int) -> ir.Model:
    """The first `count` nodes of `model` as a model of their own."""
    rows, _ = table(model)
    stages = [0 if k < count else 2 for k in range(len(rows))]
    return extract(model, _section(model, rows, stages, 0))


def extract(model: ir.Model, section: Section) -> ir.Model:
    """The nodes of `section` as a model of their own."""
    rows, constants = table(model)
    values = {str(v.name): v for v in [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]}
    part = build(
        model,
        [(rows[k], {}) for k in section.nodes],
        constants,
        [values[name] for name in section.inputs],
        [values[name] for name in section.outputs],
    )
    assert part is not None  # the nodes are in an order that works
    return part
