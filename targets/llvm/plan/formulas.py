"""Elementwise regions of a graph: nodes between one value and one other that kernels apply as a `Formula`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.llvm.kernels.epilogue import Activation
from graphopt.targets.llvm.kernels.formula import OPERATORS, Formula, Ref, Step

Simple = Callable[[ir.Node, ir.Value], Activation | None]
LONGEST = 24  # steps


def region(value: ir.Value, simple: Simple) -> tuple[Formula, list[ir.Node]] | None:
    """The longest elementwise function of `value` alone, and its nodes in order: the last one yields the result.

    Nothing outside reads `value` or what lies between it and the result. `simple(node, value)` is the activation that a
    node applies to a value.
    """
    if value.is_graph_output() or value.shape is None:
        return None
    numbers: dict[ir.Value, int] = {value: 0}
    nodes: list[ir.Node] = []
    steps: list[Step] = []
    best = 0
    waiting = _users(value)
    while len(nodes) < LONGEST:
        found = next(((n, s) for n in waiting if (s := _step(n, value, numbers, simple)) is not None), None)
        if found is None:
            break
        node, step = found
        nodes.append(node)
        steps.append(step)
        numbers[node.outputs[0]] = len(steps)
        if _closed(numbers, nodes):
            best = len(nodes)
        waiting = [n for n in dict.fromkeys([*waiting, *_users(node.outputs[0])]) if n not in nodes]
    return (Formula(tuple(steps[:best])), nodes[:best]) if best else None


def _users(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses()]


def _closed(values: Mapping[ir.Value, int], nodes: list[ir.Node]) -> bool:
    """Whether the result of the last of `nodes` is the only one of `values` that something outside them needs."""
    inside = [v for v in values if v is not nodes[-1].outputs[0]]
    return all(not v.is_graph_output() and all(user in nodes for user in _users(v)) for v in inside)


def _step(node: ir.Node, value: ir.Value, numbers: Mapping[ir.Value, int], simple: Simple) -> Step | None:
    y = node.outputs[0]
    if node.domain != "" or len(node.outputs) != 1 or y.shape != value.shape or y.dtype != ir.DataType.FLOAT:
        return None
    known = [v for v in node.inputs if v is not None and v in numbers]
    if len(known) == 1:
        activation = simple(node, known[0])
        if activation is not None:
            return Step(activation, (Ref(numbers[known[0]]),))
    if node.op_type == "Pow":
        name = {2.0: "Square", 3.0: "Cube"}.get(scalar(node.inputs[1]) or 0.0)
        return Step(name, (Ref(numbers[known[0]]),)) if name is not None and known == [node.inputs[0]] else None
    if node.op_type not in OPERATORS or len(node.inputs) > 2:
        return None
    operands: list[Ref | float] = []
    for v in node.inputs:
        constant = scalar(v)
        if v is not None and v in numbers:
            operands.append(Ref(numbers[v]))
        elif constant is not None:
            operands.append(constant)
        else:
            return None
    return Step(node.op_type, tuple(operands))


def scalar(value: ir.Value | None) -> float | None:
    """The one element of a constant that has one."""
    array = constant_array(value)
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])
