"""The estimate of a quantized model: from the streams the compiler emits, or, on a bare array, from formulas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from graphopt.targets.npu.cycles import systolic_cycles
from graphopt.targets.npu.energy import Events, array_bytes, components
from graphopt.targets.npu.machine import BareArray, Machine
from graphopt.targets.npu.partition import CANDIDATES
from graphopt.targets.npu.products import Product, product_of
from graphopt.targets.npu.report import Node, nodes_of_program, totals
from graphopt.targets.npu.rewrite import offload

FREE = frozenset({"QuantizeLinear", "DequantizeLinear", "Constant", "Identity"})


def estimate_quantized(model: ir.Model, machine: Machine | BareArray) -> dict[str, Any]:
    """Totals and `nodes` of an int8 model of fixed sizes; see `graphopt.npu.estimate`. Changes `model`."""
    if isinstance(machine, BareArray):
        nodes = [_on_array(node, machine) for node in model.graph if node.op_type not in FREE]
        return {**totals(machine, nodes), "nodes": nodes}
    before = {str(node.name): node.op_type for node in model.graph}
    offloaded, left = offload(model, machine, alone=True)
    nodes = [node for item in offloaded for node in nodes_of_program(item, machine)]
    nodes += _left(model, before, left)
    return {**totals(machine, nodes), "nodes": nodes}


def _left(model: ir.Model, before: Mapping[str, str], left: Mapping[str, tuple[str, str]]) -> list[Node]:
    """What the CPU computes, with the reason; Q/DQ pairs are not worth a line."""
    nodes: list[Node] = []
    for node in model.graph:
        name, op = str(node.name), node.op_type
        if before.get(name) == op and op not in FREE:
            reason = left[name][1] if name in left else f"the NPU has no {op}"
            nodes.append(_nothing(name, op, reason))
    return nodes


def _nothing(name: str, op: str, reason: str) -> Node:
    return {"name": name, "op": op, "cycles": 0, "macs": 0, "dram_bytes": 0, "energy_uj": 0.0, "reason": reason}


def _on_array(node: ir.Node, machine: BareArray) -> Node:
    name, op = str(node.name), node.op_type
    if op not in CANDIDATES or op == "ConvTranspose" or node.domain != "":
        return _nothing(name, op, f"the array has no {op}")
    product = product_of(node)
    if isinstance(product, str):
        return _nothing(name, op, product)
    cycles = product.groups * systolic_cycles(machine.array, product.m, product.n, product.k)
    by = components(machine.energy, _events(product, machine))
    return {
        "name": name,
        "op": op,
        "cycles": cycles,
        "macs": product.macs,
        "utilisation": product.macs / (cycles * machine.array.macs_per_cycle),
        "dram_bytes": product.bytes,
        "energy_uj": sum(by.values()),
        "energy": by,
    }


def _events(product: Product, machine: BareArray) -> Events:
    scratchpad, accumulator = array_bytes(machine.array, product.m, product.n, product.k)
    (memory,) = machine.energy.memory
    groups, outputs = product.groups, product.groups * product.m * product.n
    return Events(
        product.macs, groups * scratchpad + product.bytes, groups * accumulator + 4 * outputs, outputs,
        {memory: product.bytes},
    )  # fmt: skip
