"""Regions: convex sets of nodes with one way in and one way out, given by the user or found in the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.graph import cost, views

LINEAR = frozenset({"Conv", "Gemm", "MatMul"})
"""The operators whose weights a student may replace."""


@dataclasses.dataclass(frozen=True)
class Region:
    """Nodes in graph order, the varying values they read from outside, and the ones read from them."""

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of its nodes; see `graphopt.graph.cost`."""
        return sum(cost.macs(node) for node in self.nodes)

    @property
    def parameters(self) -> int:
        """Elements of the constants its nodes read, each constant once."""
        read = dict.fromkeys(value for node in self.nodes for value in node.inputs if value is not None)
        return sum(int(tensor.size) for value in read if (tensor := cost.constant(value)) is not None)

    @property
    def name(self) -> str:
        """The name of the node that yields the (first) output."""
        return (self.outputs[0].producer() or self.nodes[-1]).name or "region"

    @property
    def title(self) -> str:
        """What the report calls it: its node, or its first and last."""
        return self.name if len(self.nodes) == 1 else f"{self.nodes[0].name} .. {self.name}"

    @property
    def is_one_layer(self) -> bool:
        """Whether it holds one linear layer at most."""
        return sum(node.op_type in LINEAR for node in self.nodes) <= 1


def of_nodes(graph: ir.Graph, nodes: Collection[ir.Node]) -> Region:
    """The region made of `nodes`. Raises `UsageError` naming the path that leaves and re-enters it, if one does."""
    path = views.reentry(graph, nodes)
    if path:
        steps = " -> ".join(f"`{node.name}`" for node in path)
        raise UsageError(
            f"The region is not convex: the path {steps} leaves it and comes back, so no single student can take "
            f"its place. Take {_listed(path[1:-1])} into the region, or leave `{path[0].name}` or "
            f"`{path[-1].name}` out of it."
        )
    inputs, outputs = views.boundary(graph, nodes)
    members = set(nodes)
    return Region(tuple(node for node in graph if node in members), tuple(inputs), tuple(outputs))


def of_values(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> Region:
    """The region that computes the values `outputs` from the values `inputs`.

    Raises `UsageError` when a name is unknown, an input depends on the region's own output, the outputs also
    depend on something else, or a value inside is used outside; each by name.
    """
    known = {value.name: value for value in [*graph.inputs, *(v for node in graph for v in node.outputs)]}
    missing = [name for name in [*inputs, *outputs] if name not in known]
    if missing:
        raise UsageError(f"The graph has no value named {_quoted(missing)}: a region is given by names of values.")
    nodes = views.between(graph, [known[n] for n in inputs], [known[n] for n in outputs])
    if not nodes:
        raise UsageError(f"Nothing lies between the values {_quoted(inputs)} and {_quoted(outputs)}.")
    region = of_nodes(graph, nodes)
    leaking = [str(value.name) for value in region.outputs if value.name not in outputs]
    if leaking:
        raise UsageError(
            f"The region from {_quoted(inputs)} to {_quoted(outputs)} computes {_quoted(leaking)}, also used outside "
            "it or an output of the graph: end the region there, or name it among the outputs."
        )
    return region


def of_globs(graph: ir.Graph, patterns: Sequence[str]) -> list[Region]:
    """One region for each connected group of nodes whose names match a pattern; constants are left out.

    Raises `UsageError` when nothing matches, or a group is not convex.
    """
    moving = views.varying(graph)
    matches = {
        node
        for node in graph
        if any(fnmatchcase(node.name or "", pattern) for pattern in patterns)
        and any(value in moving for value in node.outputs)
    }
    if not matches:
        raise UsageError(f"No node has a name that matches {_quoted(patterns)}; `graphopt inspect` lists the names.")
    return [of_nodes(graph, group) for group in views.groups(graph, matches.__contains__)]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _listed(nodes: Iterable[ir.Node]) -> str:
    return _quoted(str(node.name) for node in nodes)
