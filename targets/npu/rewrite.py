"""Put NPU nodes into the graph: each region becomes one call, its stream and constants become initializers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, derive, fresh_name, remove_unused
from graphopt.targets.lowering.origins import does_arithmetic_of
from graphopt.targets.lowering.support import EXTERNAL
from graphopt.targets.npu import regions
from graphopt.targets.npu.candidate import Candidate, reshaped, shape_of
from graphopt.targets.npu.codegen import compile_program
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.program import Op, Program, Tensor, View, whole
from graphopt.targets.npu.runtime import SYMBOL
from graphopt.targets.npu.shapes import static_shape
from graphopt.targets.npu.stream import Stream, pack

CPU_GMACS = 2.0
"""Integer multiply-adds per ns of the CPU beside the NPU: that of a Cortex-M55 at 500 MHz, 4 per cycle."""


@dataclasses.dataclass(frozen=True)
class Offloaded:
    """A region that runs on the NPU: its operators and its stream."""

    program: Program
    stream: Stream


def offload(
    model: ir.Model, machine: Machine, cpu_gmacs: float = CPU_GMACS, *, alone: bool = False
) -> tuple[list[Offloaded], regions.Left]:
    """Replace, in place, every region of `model` that `machine` runs.

    `alone`: whatever `machine` can run, each operator as a region of its own; to see what it takes by itself.
    Returns what was offloaded, and for each node left that the NPU might have run: its operator and the reason.
    """
    found, left = regions.candidates(model, machine)
    chosen = regions.needed(found) if alone else regions.choose(found, machine, cpu_gmacs, left)
    groups = [[candidate] for candidate in chosen] if alone else regions.levels(model, chosen)
    done: list[Offloaded] = []
    description: ir.Value | None = None
    known: dict[ir.Value, ir.Value] = {}
    for number, region in enumerate(groups):
        name = region[0].name if alone else f"region_{number}"
        for part in _compiled(region, machine, name, left):
            if description is None:
                description = add_constant(model.graph, "npu_machine", np.frombuffer(machine.to_json(), np.uint8))
            _replace(model.graph, part, description, known)
            done.append(Offloaded(part.program, part.stream))
    if done:
        model.opset_imports[EXTERNAL[0]] = 1
        model.graph.sort()
        remove_unused(model)
    return done, left


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """A region and its program, with the graph's values that go in and come out."""

    candidates: Sequence[Candidate]
    program: Program
    inputs: list[ir.Value]
    outputs: list[Candidate]
    stream: Stream
    constants: np.ndarray[Any, Any]


def _compiled(region: list[Candidate], machine: Machine, name: str, left: regions.Left) -> list[_Compiled]:
    """`region` as one program; if it does not fit, in halves."""
    program, inputs, outputs = program_of(region, name)
    try:
        stream, constants = compile_program(program, machine)
    except ValueError as reason:
        if len(region) == 1:
            left[region[0].name] = region[0].anchor.op_type, str(reason)
            return []
        half = len(region) // 2
        parts = (region[:half], region[half:])
        return [p for i, part in enumerate(parts) for p in _compiled(part, machine, f"{name}_{i}", left)]
    return [_Compiled(region, program, inputs, outputs, stream, constants)]


def program_of(region: Sequence[Candidate], name: str) -> tuple[Program, list[ir.Value], list[Candidate]]:
    """The program of `region`, the values it reads, and the candidates whose results others need."""
    inside = {node for candidate in region for node in candidate.nodes}
    views: dict[ir.Value, View] = {}
    inputs: list[ir.Value] = []
    outputs = [candidate for candidate in region if _leaves(candidate, inside)]
    ops: list[Op] = []
    for candidate in region:
        for value in candidate.sources:
            if value not in views:
                views[value] = whole(Tensor(str(value.name), shape_of(value)))
                inputs.append(value)
        shape = shape_of(candidate.result)
        source = views[candidate.sources[0]]
        if candidate.moved and candidate not in outputs and not source.first and source.tensor.bytes == _size(shape):
            views[candidate.result] = reshaped(source, shape)
            continue
        size = 1 if candidate.unit is None else 4
        out = whole(Tensor(str(candidate.result.name), shape, size))
        views[candidate.result] = out
        ops += candidate.ops([views[value] for value in candidate.sources], out)
    tensors = tuple(views[value].tensor for value in inputs)
    results = tuple(views[candidate.result].tensor for candidate in outputs)
    return Program(name, tuple(ops), tensors, results), inputs, outputs


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _leaves(candidate: Candidate, inside: set[ir.Node]) -> bool:
    """Whether anything outside the region reads the result."""
    value = candidate.result
    if value.is_graph_output() or candidate.unit is not None:
        return True
    for use in value.uses():
        if use.node.op_type != "DequantizeLinear":
            return True
        for real in use.node.outputs:
            if real.is_graph_output() or any(u.node not in inside for u in real.uses()):
                return True
    return False


def _replace(graph: ir.Graph, part: _Compiled, description: ir.Value, known: dict[ir.Value, ir.Value]) -> None:
    """Swap the nodes of the region for the call; int32 accumulators are made float right behind it.

    `known`: what stands for values of regions that were replaced before.
    """
    replaced = [node for candidate in part.candidates for node in candidate.nodes]
    words = add_constant(graph, f"{part.program.name}_npu_stream", np.frombuffer(pack(part.stream), np.uint8))
    constants = add_constant(graph, f"{part.program.name}_npu_constants", part.constants)
    results: list[ir.Value] = []
    for candidate in part.outputs:
        shape = static_shape(candidate.result)
        assert shape is not None  # what has open shapes is refused
        dtype = candidate.result.dtype if candidate.unit is None else ir.DataType.INT32
        results.append(ir.val(fresh_name(graph, f"{candidate.result.name}_npu"), dtype=dtype, shape=ir.Shape(shape)))
    symbol = ir.AttrString("symbol", SYMBOL)
    name = fresh_name(graph, part.program.name)
    call = ir.Node(
        *EXTERNAL,
        [description, words, constants, *(known.get(v, v) for v in part.inputs)],
        [symbol],
        name=name,
        outputs=results,
    )
    derive(call, replaced)
    does_arithmetic_of(call, replaced)
    graph.append(call)
    for candidate, output in zip(part.outputs, results, strict=True):
        new = [] if candidate.unit is None else _dequantize(graph, output, candidate)
        for node in new:
            derive(node, candidate.nodes)
            graph.append(node)
        replacement = new[-1].outputs[0] if new else output
        name = str(candidate.result.name)
        ir.convenience.replace_all_uses_with(candidate.result, replacement, replace_graph_outputs=True)
        candidate.result.name = f"{name}_replaced"
        replacement.name = name
        known[candidate.result] = replacement


def _dequantize(graph: ir.Graph, accumulators: ir.Value, candidate: Candidate) -> list[ir.Node]:
    """int32 -> float32, times what one unit is worth: (channels, 1, ...) or (channels,)."""
    result, unit = candidate.result, candidate.unit
    assert unit is not None
    rank = len(result.shape or ())
    spread = (-1, *(1,) * (rank - 2)) if candidate.anchor.op_type == "Conv" else (-1,)
    scale = add_constant(graph, f"{result.name}_unit", unit.astype(np.float32).reshape(spread))
    to_float = ir.Node("", "Cast", [accumulators], [ir.AttrInt64("to", ir.DataType.FLOAT)])
    times = ir.Node("", "Mul", [to_float.outputs[0], scale])
    for node, what in ((to_float, "float"), (times, "scaled")):
        node.name = node.outputs[0].name = fresh_name(graph, f"{result.name}_{what}")
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, result.shape
    return [to_float, times]
