"""What the channels that stay cost: sums of products of the lengths of axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.graph.cost import constant, macs
from graphopt.passes.channels.axes import Ids
from graphopt.passes.channels.groups import Channels

Array: TypeAlias = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Term:
    """`amount`, in proportion to the lengths of axes; each of `axes` holds the unit of every index along one."""

    amount: float
    axes: tuple[Array, ...]


def mac_terms(channels: Channels, graph: ir.Graph) -> list[Term]:
    """The multiply-accumulates of each node."""
    return [_term(channels, macs(node), _lengths(channels, node)) for node in graph if macs(node)]


def parameter_terms(channels: Channels, graph: ir.Graph) -> list[Term]:
    """The elements of each constant."""
    of = channels.axes.of
    read = dict.fromkeys(value for node in graph for value in node.inputs if value is not None)
    tensors = [(value, tensor) for value in read if (tensor := constant(value)) is not None]
    return [_term(channels, tensor.size, of.get(value, [])) for value, tensor in tensors]


def total(terms: Sequence[Term], keep: Array) -> float:
    """The sum when only the units of the mask `keep` are there."""
    return sum(term.amount * float(np.prod([keep[axis].mean() for axis in term.axes])) for term in terms)


def savings(terms: Sequence[Term], count: int) -> Array:
    """For each of `count` units, the part of the sum that goes with it while all others stay."""
    found = np.zeros(count)
    for term in terms:
        for axis in term.axes:
            np.add.at(found, axis, term.amount / len(axis))
    return found / max(sum(term.amount for term in terms), 1.0)


def _term(channels: Channels, amount: float, axes: Sequence[Ids]) -> Term:
    return Term(amount, tuple(channels.unit[ids] for ids in axes if ids is not None))


def _lengths(channels: Channels, node: ir.Node) -> list[Ids]:
    """The axes whose lengths multiply to the MACs of a node."""
    of = channels.axes.of
    if any(value not in of for value in node.inputs[:2] if value is not None):
        return []
    a, b = (of[value] for value in node.inputs[:2] if value is not None)
    match node.op_type:
        case "Conv" | "ConvTranspose":
            return list(b[:2])
        case "Gemm":
            return [*a, b[0 if node.attributes.get_int("transB", 0) else 1]]
        case "MatMul":
            return [*a, b[-1]]
        case _:
            return []
