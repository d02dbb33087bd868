"""Put NPU nodes into the graph: each region becomes one call, its stream and constants become initializers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, derive, fresh_name
from graphopt.targets.lowering.support import EXTERNAL
from graphopt.targets.npu.codegen import compile_layer
from graphopt.targets.npu.layer import Layer
from graphopt.targets.npu.machine import Machine
from graphopt.targets.npu.partition import CANDIDATES, RefusedError, Region, find_region
from graphopt.targets.npu.runtime import SYMBOL
from graphopt.targets.npu.shapes import static_shape
from graphopt.targets.npu.stream import Stream, pack


@dataclasses.dataclass(frozen=True)
class Offloaded:
    """A layer that runs on the NPU, and its program."""

    layer: Layer
    stream: Stream


def offload(model: ir.Model, machine: Machine) -> tuple[list[Offloaded], dict[str, tuple[str, str]]]:
    """Replace, in place, every region of `model` that `machine` can run.

    Returns what was offloaded, and for each node left that the array exists for: its operator and the reason.
    """
    done: list[Offloaded] = []
    left: dict[str, tuple[str, str]] = {}
    description: ir.Value | None = None
    for node in [n for n in model.graph if n.domain == "" and n.op_type in CANDIDATES]:
        try:
            region = find_region(node)
            stream, constants = compile_layer(region.layer, machine)
        except (RefusedError, ValueError) as reason:
            left[str(node.name)] = (node.op_type, str(reason))
            continue
        if description is None:
            description = add_constant(model.graph, "npu_machine", np.frombuffer(machine.to_json(), np.uint8))
        _replace(model.graph, region, [description, *_program(model.graph, stream, constants)])
        done.append(Offloaded(region.layer, stream))
    for node in model.graph.all_nodes():
        if node.graph is not model.graph and node.domain == "" and node.op_type in CANDIDATES:
            left[str(node.name)] = (node.op_type, "it stands in a branch or a loop")
    if done:
        model.opset_imports[EXTERNAL[0]] = 1
    return done, left


def _program(graph: ir.Graph, stream: Stream, constants: np.ndarray[Any, Any]) -> list[ir.Value]:
    words = np.frombuffer(pack(stream), np.uint8)
    return [
        add_constant(graph, f"{stream.node}_npu_stream", words),
        add_constant(graph, f"{stream.node}_npu_constants", constants),
    ]


def _replace(graph: ir.Graph, region: Region, program: list[ir.Value]) -> None:
    """Swap the nodes of `region` for the call; int32 accumulators are made float right behind it."""
    result, raw = region.result, region.layer.requantise.raw
    shape = static_shape(result)
    assert shape is not None  # regions of open shape are refused
    name = str(result.name)
    dtype = ir.DataType.INT32 if raw else result.dtype
    output = ir.val(fresh_name(graph, f"{name}_npu"), dtype=dtype, shape=ir.Shape(shape))
    symbol = ir.AttrString("symbol", SYMBOL)
    call = ir.Node(*EXTERNAL, [region.source, *program], [symbol], name=str(region.anchor.name), outputs=[output])
    new = [call, *(_dequantize(graph, output, region) if raw else ())]
    for node in new:
        derive(node, region.nodes)
    replacement = new[-1].outputs[0]
    graph.insert_after(region.nodes[-1], new)
    ir.convenience.replace_all_uses_with(result, replacement, replace_graph_outputs=True)
    graph.remove(list(reversed(region.nodes)), safe=True)
    replacement.name = name


def _dequantize(graph: ir.Graph, accumulators: ir.Value, region: Region) -> list[ir.Node]:
    """int32 -> float32, times what one unit is worth: (channels, 1, ...) or (channels,)."""
    result, unit = region.result, region.layer.requantise.multiplier
    spread = (-1,) if region.layer.geometry.channels_last else (-1, *(1,) * (len(result.shape or ()) - 2))
    scale = add_constant(graph, f"{result.name}_unit", unit.astype(np.float32).reshape(spread))
    to_float = ir.Node("", "Cast", [accumulators], [ir.AttrInt64("to", ir.DataType.FLOAT)])
    times = ir.Node("", "Mul", [to_float.outputs[0], scale])
    for node, what in ((to_float, "float"), (times, "scaled")):
        node.name = node.outputs[0].name = fresh_name(graph, f"{result.name}_{what}")
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, result.shape
    return [to_float, times]
