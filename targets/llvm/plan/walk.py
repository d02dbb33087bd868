"""The walk over the graph."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from tvm import tirx

from graphopt.targets.integer.signs import make_unsigned
from graphopt.targets.llvm.cpu import Cpu
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.plan import (
    attention,
    convs,
    dense,
    integer,
    operators,
    phases,
    pointwise,
    recurrent,
    rows,
    shuffle,
    through,
    transposed,
)
from graphopt.targets.llvm.plan.choice import Choices
from graphopt.targets.llvm.plan.epilogues import Tail, tail
from graphopt.targets.llvm.plan.integer.carry import carry
from graphopt.targets.llvm.plan.integer.dynamic import plan_dynamic
from graphopt.targets.llvm.plan.integer.order import hoist
from graphopt.targets.llvm.plan.kernels import Kernels
from graphopt.targets.llvm.plan.layout import Twins, image, replace
from graphopt.targets.llvm.plan.norms import find_norms
from graphopt.targets.llvm.plan.one_hot import look_up
from graphopt.targets.llvm.plan.rms import find_rms_norms
from graphopt.targets.llvm.plan.simplify import simplify
from graphopt.targets.llvm.plan.sink import sink
from graphopt.targets.llvm.plan.spelled import spell
from graphopt.targets.lowering.origins import does_arithmetic_of


def plan(model: ir.Model, cpu: Cpu, parallel: bool, choices: Choices | None = None) -> dict[str, tirx.PrimFunc]:
    """Replace what kernels cover in the main graph of `model`, in place; returns the kernels by symbol.

    `model` must be canonical (see `targets/lowering`), with shapes inferred. `choices` between kernels that are known
    are kept to; the others are noted there.
    """
    isa, choices = Isa(cpu.lanes, cpu.registers, cpu.features), choices or Choices()
    integer.loosen_slow(model, lambda trial: _prepare(trial, cpu), isa, choices)
    _prepare(model, cpu)
    graph = model.graph
    kernels = Kernels(graph, isa, parallel, choices)
    twins = Twins(graph, lambda value, parts: pointwise.gather(value, parts, kernels, twins))
    nodes = list(graph)
    position = {node: index for index, node in enumerate(nodes)}
    regions = integer.keep_fast(integer.find(nodes), kernels)
    integer.make_rest_float(graph, regions)
    taken = {node for region in regions.values() for node in region.nodes}
    attentions = attention.find(nodes)
    taken.update(node for match in attentions.values() for node in match.nodes)
    shuffles = shuffle.find(nodes)
    taken.update(node for found in shuffles.values() for node in found.nodes)
    tails = _tails(nodes, position, taken)
    made = [found.value for found in (*tails.values(), *shuffles.values())]
    made += [region.nodes[-1].outputs[0] for region in regions.values()]
    chains = _chains(nodes, made, taken, integer.wanted(regions.values()))
    for node in nodes:
        twins.at, twins.newest = node, None
        found = tails.get(node)
        group = regions.get(node) or found or attentions.get(node) or chains.get(node) or shuffles.get(node)
        twins.replaced = (node,) if group is None else group.nodes
        if node in regions:
            integer.emit(regions[node], kernels, twins)
        elif found is not None:
            _emit(found, kernels, twins)
        elif node in attentions:
            attention.emit(attentions[node], kernels, twins)
        elif node in shuffles:
            shuffle.emit(shuffles[node], kernels, twins)
        elif node in chains:
            pointwise.emit(chains[node], kernels, twins)
        elif node not in taken and not any(kind.emit(node, kernels, twins) for kind in (through, operators, rows)):
            for value in node.inputs:
                if value is not None:
                    twins.first(value)
            for value in _captured(node):
                twins.first(value)
        if group is not None and twins.newest is not None:
            does_arithmetic_of(twins.newest, group.nodes)
    twins.at = None
    for value in list(graph.outputs):
        twins.first(value)
    common.RemoveUnusedNodesPass()(model)
    return kernels.functions


def _prepare(model: ir.Model, cpu: Cpu) -> None:
    """What kernels know by one operator, written as that."""
    plan_dynamic(model)
    make_unsigned(model)
    carry(model)
    hoist(model.graph)
    look_up(model)
    sink(model)
    recurrent.split(model, cpu.lanes)
    find_norms(model)
    find_rms_norms(model)
    spell(model)
    simplify(model)
    phases.split(model)


def _tails(nodes: list[ir.Node], position: dict[ir.Node, int], taken: set[ir.Node]) -> dict[ir.Node, Tail]:
    """The tail that ends at a node; their nodes are added to those `taken`. Later convolutions choose first."""
    tails: dict[ir.Node, Tail] = {}
    for node in reversed(nodes):
        if node in taken or all(
            problem(node) is None for problem in (convs.problem, dense.problem, transposed.problem)
        ):
            continue
        found = tail(node, position, taken)
        tails[found.last] = found
        taken.update(found.nodes)
    return tails


def _chains(
    nodes: list[ir.Node], made: list[ir.Value], taken: set[ir.Node], wanted: set[ir.Value]
) -> dict[ir.Node, pointwise.Chain]:
    """The chain of elementwise nodes that ends at a node, of those that will be channels-last; adds them to `taken`.

    `made`: values that kernels yield; `wanted`: 8-bit values that they read channels-last.
    """
    chains: dict[ir.Node, pointwise.Chain] = {}
    last = {value for value in made if image(value) is not None}
    for node in nodes:
        if node in taken or node.domain != "":
            continue
        turned = any(value in last for value in node.inputs)
        if node.op_type == "QuantizeLinear" and node.outputs[0] in wanted:
            turned = True
        found = pointwise.chain(node, taken) if turned else None
        if found is not None:
            chains[found.last] = found
            taken.update(found.nodes)
            last.add(found.value)
        elif node.op_type in through.POOLS or (turned and node.op_type in through.KEEPING):
            last.update(node.outputs)
    return chains


def _emit(found: Tail, kernels: Kernels, twins: Twins) -> None:
    node = found.nodes[0]
    c = convs.problem(node)
    if c is not None:
        convs.emit(found, c, kernels, twins)
        return
    c = transposed.problem(node)
    if c is not None:
        transposed.emit(found, c, kernels, twins)
        return
    g = dense.problem(node)
    assert g is not None
    called = dense.emit(found, g, kernels, twins)
    replace(found.value, called.outputs[0])


def _captured(node: ir.Node) -> set[ir.Value]:
    """Values of the main graph that subgraphs of `node` read."""
    found: set[ir.Value] = set()
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                found.update(v for v in inner.inputs if v is not None and v.graph is node.graph)
    return found
