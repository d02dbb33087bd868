"""What integer regions have in common: quantized values, and the parameters they are read with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array


class Region(Protocol):
    """Nodes that one integer kernel replaces, in the graph's order."""

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The last one yields the result, and nothing outside reads what the others yield."""
        ...


R = TypeVar("R", bound=Region)


def last_first(
    nodes: Sequence[ir.Node],
    taken: set[ir.Node],
    match: Callable[[ir.Node, dict[ir.Node, int], set[ir.Node]], R | None],
) -> list[R]:
    """The regions that ``match(node, positions of nodes, taken)`` finds, none of whose nodes are `taken`.

    Later nodes choose first: of two that could add each other's result the later one does.
    """
    position = {node: index for index, node in enumerate(nodes)}
    found: list[R] = []
    taken = set(taken)
    for node in reversed(nodes):
        region = None if node in taken else match(node, position, taken)
        if region is not None:
            found.append(region)
            taken.update(region.nodes)
    return found


class Quantized(NamedTuple):
    """A uint8 value, and the float32 scale and zero point for all of it."""

    value: ir.Value
    scale: np.float32
    zero: int


def dequantized(value: ir.Value | None) -> Quantized | None:
    """What `value` is DequantizeLinear of, if that is a computed uint8 value with one scale."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type != "DequantizeLinear":
        return None
    return _parameters(node, node.inputs[0])


def quantized(node: ir.Node) -> Quantized | None:
    """What a QuantizeLinear of float32 yields, if that is uint8 with one scale."""
    if node.domain != "" or node.op_type != "QuantizeLinear":
        return None
    x = node.inputs[0]
    return None if x is None or x.dtype != ir.DataType.FLOAT else _parameters(node, node.outputs[0])


def _parameters(node: ir.Node, value: ir.Value | None) -> Quantized | None:
    scale, zero = constant_array(node.inputs[1]), np.zeros((), np.uint8)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = constant_array(node.inputs[2])
    if value is None or value.dtype != ir.DataType.UINT8 or constant_array(value) is not None:
        return None
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or scale.dtype != np.float32:
        return None
    return Quantized(value, np.float32(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]))


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads `value`, once."""
    users = [use.node for use in value.uses()]
    return None if value.is_graph_output() or len(users) != 1 else users[0]
