"""Activations a few steps behind an integer layer that yields floats, as where scales are known at run time only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.targets.llvm.kernels import elementwise
from graphopt.targets.llvm.kernels.epilogue import Activation
from graphopt.targets.llvm.kernels.formula import Formula
from graphopt.targets.llvm.plan.epilogues import activation_of
from graphopt.targets.llvm.plan.kernels import ELEMENT, Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, image, replace
from graphopt.targets.llvm.plan.rows import matrix

STEPS = 4  # a zero point, a scale, a bias


@dataclasses.dataclass(frozen=True, eq=False)
class Behind:
    """The nodes of one long activation of rows, and what they compute."""

    nodes: tuple[ir.Node, ...]
    x: ir.Value
    formula: Activation | Formula


def find(nodes: Sequence[ir.Node], taken: set[ir.Node]) -> list[Behind]:
    """The activations that start at a value behind a layer among `taken`, of whose nodes none is."""
    found: list[Behind] = []
    for node in nodes:
        x = node.outputs[0] if node.outputs else None
        if x is None or node in taken or (image(x) is not None and len(x.shape or ()) == 4) or not _behind(x, taken):
            continue
        activation = activation_of(x)
        if activation is None or not activation[0].long or matrix(x) is None or taken.intersection(activation[1]):
            continue
        found.append(Behind(tuple(activation[1]), x, activation[0]))
    return found


def _behind(x: ir.Value, taken: set[ir.Node]) -> bool:
    """Whether `x` comes from a node among `taken` by sums, differences and products."""
    value: ir.Value | None = x
    for _ in range(STEPS):
        node = None if value is None else value.producer()
        if node is None or node.domain != "" or node.op_type not in ("Add", "Sub", "Mul"):
            return False
        if any(v is not None and v.producer() in taken for v in node.inputs):
            return True
        same = [v for v in node.inputs if v is not None and v.shape == x.shape]
        value = same[0] if len(same) == 1 else None
    return False


def emit(found: Behind, kernels: Kernels, twins: Twins) -> None:
    """Put the kernel call in front of the last node."""
    problem, result = matrix(found.x), found.nodes[-1].outputs[0]
    assert problem is not None
    rows, size = problem
    parallel = kernels.threads(rows, 4 * size * ELEMENT)
    symbol = kernels.symbol(
        ("elementwise", rows, size, found.formula), "elementwise",
        lambda s: elementwise.make(rows, size, found.formula, kernels.isa, parallel, s),
    )  # fmt: skip
    x = twins.first(found.x)
    assert x.shape is not None
    called = call(symbol, [x], list(x.shape), found.nodes[-1])
    twins.insert(called)
    replace(result, called.outputs[0])
