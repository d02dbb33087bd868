"""What a node looks like, names aside: operator, attributes, constants; and all that lies before and behind it."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.graph.absent import is_absent
from graphopt.graph.cost import constant
from graphopt.graph.defaults import own_attributes
from graphopt.match.named import kind

PLAIN = (ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT, ir.AttributeType.STRING)
PROBES = 1024
"""Elements of a constant that `fingerprint` reads at most twice."""


def look(node: ir.Node) -> Hashable:
    """Operator, arity and plain attributes that are not the default."""
    attributes = sorted((name, str(a.value)) for name, a in own_attributes(node).items() if a.type in PLAIN)
    return (*kind(node), len(node.inputs), len(node.outputs), tuple(attributes))


def family(node: ir.Node) -> str:
    """The operator without what tools put around its name: Conv, FusedConv and the NCHWc Conv are one."""
    return node.op_type.removeprefix("Fused")


def constants(node: ir.Node) -> list[tuple[int, ir.TensorProtocol]]:
    """The constants that `node` reads, with the slot; data is not read."""
    found = ((i, constant(value)) for i, value in enumerate(node.inputs) if value is not None)
    return [(i, tensor) for i, tensor in found if tensor is not None]


def shapes(node: ir.Node) -> Hashable:
    """Types and shapes of the node's constants."""
    return tuple((i, str(tensor.dtype), tuple(tensor.shape.numpy())) for i, tensor in constants(node))


def fingerprint(tensor: ir.TensorProtocol) -> int:
    """A checksum over evenly spread elements: equal for equal tensors, and almost never for others.

    Those of which only type and shape are known are all equal.
    """
    if is_absent(tensor):
        return 0
    flat = tensor.numpy().reshape(-1)
    return zlib.crc32(np.ascontiguousarray(flat[:: max(1, flat.size // PROBES)]).tobytes())


def digests(node: ir.Node) -> Hashable:
    """Shapes and checksums of the node's constants of two dimensions or more; None when it has none."""
    large = [(i, t) for i, t in constants(node) if len(t.shape) > 1 and t.dtype != ir.DataType.STRING]
    return tuple((i, tuple(t.shape.numpy()), fingerprint(t)) for i, t in large) or None


Looks = Mapping[ir.Node, Hashable]


def histories(
    graph: ir.Graph, looks: Looks, marks: Mapping[ir.Node, int]
) -> tuple[dict[ir.Node, int], dict[ir.Node, int]]:
    """For each node a hash of all that leads to it, and of all that it leads to, both as far as the marked nodes;
    `looks` is the `look` of each.

    Weisfeiler-Lehman labels (Shervashidze et al. 2011) of a directed acyclic graph, refined to the end at once.
    """
    nodes = list(graph.all_nodes())
    ahead: dict[ir.Node, int] = {}
    entry = {value: index for index, value in enumerate(graph.inputs)}
    for node in nodes:
        ahead[node] = marks.get(node, hash((looks[node], tuple(_source(v, entry, ahead) for v in node.inputs))))
    back: dict[ir.Node, int] = {}
    leaves = {value: index for index, value in enumerate(graph.outputs)}
    for node in reversed(nodes):
        uses = [
            sorted([(back.get(user, 0), slot) for user, slot in value.uses()] + [(leaves.get(value, -1), -1)])
            for value in node.outputs
        ]
        back[node] = marks.get(node, hash((looks[node], str(uses))))
    return ahead, back


def _source(value: ir.Value | None, entry: dict[ir.Value, int], ahead: dict[ir.Node, int]) -> Hashable:
    if value is None:
        return None
    producer = value.producer()
    if producer is not None:
        return ahead.get(producer, 0), value.index()
    if value in entry:
        return "input", entry[value]
    return "constant", str(value.dtype), str(value.shape)


def around(graph: ir.Graph, looks: Looks) -> dict[ir.Node, Hashable]:
    """For each node its own look and that of the nodes next to it."""
    found: dict[ir.Node, Hashable] = {}
    for node in graph.all_nodes():
        sides = [looks.get(p) for v in node.inputs if v is not None and (p := v.producer()) is not None]
        users = sorted(str(looks.get(user)) for value in node.outputs for user, _ in value.uses())
        found[node] = (looks[node], tuple(sides), tuple(users))
    return found
