"""Which value of one graph is to be compared with which of another."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.graph.provenance import PASSES
from graphopt.graph.views import reads, varying
from graphopt.match import match


@dataclasses.dataclass(frozen=True)
class Twin:
    """`old` of the first graph and `new` of the second should be the same numbers; `before` are the nodes behind `old`
    that became `new`'s producer.
    """

    old: ir.Value
    new: ir.Value
    before: list[str]

    @property
    def firm(self) -> bool:
        """Whether both are known to have the same shape, so that one can be put in the other's place."""
        if self.old.shape is None or self.new.shape is None or len(self.old.shape) != len(self.new.shape):
            return False
        dims = zip(self.old.shape, self.new.shape, strict=True)
        return all(a == b for a, b in dims if isinstance(a, int) and isinstance(b, int))


def twins(a: ir.Model, b: ir.Model) -> tuple[list[Twin], dict[str, str]]:
    """Values to compare, in the order of `b`'s graph, and what can't be compared -> why.

    Of nodes that are one to one, their outputs; of nodes that became others, what is read from outside them.
    """
    found = match(a, b)
    old_ones, new_ones = set(a.graph), set(b.graph)
    groups = [([old], [new]) for old, new in found.pairs.items()] + found.groups
    moving = varying(a.graph) | varying(b.graph)
    twins: dict[ir.Value, Twin] = {}
    left: dict[str, str] = {}
    for olds, news in groups:
        if not (old_ones.issuperset(olds) and new_ones.issuperset(news)):
            continue  # in subgraphs: not to be seen from outside
        ends = [_ends(olds), _ends(news)] if len(olds) + len(news) > 2 else [olds[0].outputs, news[0].outputs]
        first, second = ([value for value in values if value.name and value in moving] for values in ends)
        name = str(news[-1].name)
        if len(first) != len(second):
            named = {value.name: value for value in first}
            second = [value for value in second if value.name in named]
            first = [named[value.name] for value in second]
            if not second:
                left[name] = f"it stands for {len(olds)} nodes whose values do not correspond to its own"
        for old, new in zip(first, second, strict=True):
            if old.dtype != new.dtype and None not in (old.dtype, new.dtype):
                left[name] = f"{old.dtype} became {new.dtype}"
            else:
                twins[new] = Twin(old, new, [str(node.name) for node in olds])
    return [twins[value] for node in b.graph for value in node.outputs if value in twins], left


def _ends(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """The values that `nodes` compute and that others read or the graph returns."""
    members = set(nodes)
    return [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(user not in members for user in value.consumers())
    ]


def inputs(a: ir.Model, b: ir.Model) -> dict[str, str]:
    """Name of each input of `b` -> of the input of `a` that it is: by name, else by place.

    Raises:
        ModelError: the models don't take the same inputs.
    """
    return _interface(list(a.graph.inputs), list(b.graph.inputs), "inputs")


def outputs(a: ir.Model, b: ir.Model) -> dict[str, str]:
    """The same for the outputs."""
    return _interface(list(a.graph.outputs), list(b.graph.outputs), "outputs")


def _interface(olds: list[ir.Value], news: list[ir.Value], what: str) -> dict[str, str]:
    by_name = {str(value.name): value for value in olds}
    if {value.name for value in news} == by_name.keys():
        return {name: name for name in by_name}
    alike = len(olds) == len(news) and all(a.dtype == b.dtype for a, b in zip(olds, news, strict=True))
    if not alike:
        lists = [", ".join(f"{v.name}: {v.dtype}" for v in values) or "none" for values in (olds, news)]
        raise ModelError(f"the models' {what} are not the same: {lists[0]} and {lists[1]}.")
    return {str(new.name): str(old.name) for old, new in zip(olds, news, strict=True)}


def computed_from(value: ir.Value, known: set[ir.Value]) -> tuple[list[ir.Node], set[ir.Value]]:
    """The nodes that compute `value` from values of `known`, and those that they read of these."""
    seen: dict[ir.Node, None] = {}
    met: set[ir.Value] = set()
    work = [value.producer()]
    while work:
        node = work.pop()
        if node is None or node in seen:
            continue
        seen[node] = None
        for source in reads(node):
            if source in known:
                met.add(source)
            else:
                work.append(source.producer())
    return list(seen), met


def passes_between(twin: Twin, known: set[ir.Value]) -> list[str]:
    """Passes that made or changed the nodes that compute `twin.new` from values of `known`.

    Of these the lossy ones, and those not known here, if there are any.
    """
    from graphopt.pipeline.registry import pass_class, pass_names

    nodes, _ = computed_from(twin.new, known)
    named = dict.fromkeys(name for node in nodes for name in json.loads(node.metadata_props.get(PASSES, "[]")))
    registered = pass_names()
    lossy = [name for name in named if name not in registered or pass_class(name).preserves.kind == "lossy"]
    return lossy or list(named)
