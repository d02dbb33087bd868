"""A part of a model as a model of its own: some of its nodes, with smaller inputs and plain weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.graph.edit import remove_unused
from graphopt.graph.shapes import forget_shapes, infer_shapes
from graphopt.graph.views import reads

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is kept of a model.

    nodes: places of the main graph's nodes that are kept, ascending.
    outputs: names of the values returned; None: all that the kept nodes yield and that the model returns, a node
        left out reads, or nobody reads.
    sizes: (input, axis, size) for dimensions that are not as in the model.
    ones: names of the weights that are filled with ones.
    """

    nodes: tuple[int, ...]
    outputs: tuple[str, ...] | None = None
    sizes: tuple[tuple[str, int, int], ...] = ()
    ones: tuple[str, ...] = ()

    def key(self) -> str:
        """The candidate as text, for the file of verdicts."""
        return json.dumps([_ranges(self.nodes), self.outputs, self.sizes, self.ones], separators=(",", ":"))


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for n in numbers:
        if found and found[-1][1] == n - 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return found


def carve(model: ir.Model, candidate: Candidate, known: Mapping[str, Array]) -> ir.Model | None:
    """The model that `candidate` describes; None where there is none (a cut through a value of unknown type, shapes
    that contradict each other). `model` is left as it is; weights are shared.

    A value that is read and no longer computed becomes an input, or, when it is in `known`, an initializer.
    """
    clone = model.clone()
    nodes = list(clone.graph)
    kept = {nodes[k] for k in candidate.nodes}
    _choose_outputs(clone, nodes, kept, candidate.outputs)
    cut = dict.fromkeys(v for node in nodes if node in kept for v in reads(node) if _is_cut(v, nodes, kept))
    if not clone.graph.outputs or any(v.type is None or v.shape is None for v in cut):
        return None
    for value in cut:
        _replace(clone, value, known.get(str(value.name)))
    gone = [node for node in nodes if node not in kept]
    _let_go(gone)
    clone.graph.remove(gone, safe=True)
    remove_unused(clone)
    used = {v for node in clone.graph for v in reads(node)} | set(clone.graph.outputs)
    clone.graph.inputs[:] = [v for v in clone.graph.inputs if v in used]
    for name in candidate.ones:
        _fill(clone, name)
    return _resized(clone, candidate.sizes)


def _choose_outputs(clone: ir.Model, nodes: list[ir.Node], kept: set[ir.Node], names: tuple[str, ...] | None) -> None:
    made = [v for node in nodes if node in kept for v in node.outputs if v.name]
    if names is not None:
        outputs = [v for v in made if v.name in names]
    else:
        read_outside = {v for node in nodes if node not in kept for v in reads(node)}
        read = {v for node in nodes if node in kept for v in reads(node)}
        outputs = [v for v in made if v.is_graph_output() or v in read_outside or v not in read]
    clone.graph.outputs[:] = [v for v in outputs if v.type is not None]


def _is_cut(value: ir.Value, nodes: list[ir.Node], kept: set[ir.Node]) -> bool:
    producer = value.producer()
    return producer is not None and producer not in kept and producer.graph is nodes[0].graph


def _replace(clone: ir.Model, value: ir.Value, array: Array | None) -> None:
    name = str(value.name)
    stand_in = ir.Value(name=name, shape=value.shape, type=value.type)
    value.replace_all_uses_with(stand_in, replace_graph_outputs=True)
    value.name = f"{name}/cut"
    if array is None:
        clone.graph.inputs.append(stand_in)
    else:
        stand_in.const_value = ir.tensor(array, name=name)
        clone.graph.register_initializer(stand_in)


def _let_go(nodes: Iterable[ir.Node]) -> None:
    """Have nothing inside these nodes read anything: a subgraph reads on where its node is gone."""
    graphs = (a.as_graph() for node in nodes for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH)
    for inner in (inner for graph in graphs for inner in graph.all_nodes()):
        for index in range(len(inner.inputs)):
            inner.replace_input_with(index, None)


def _fill(clone: ir.Model, name: str) -> None:
    value = clone.graph.initializers.get(name)
    if value is not None and value.const_value is not None:
        array = np.ones(value.const_value.shape.numpy(), value.const_value.dtype.numpy())
        value.const_value = ir.tensor(array, name=name)


def _resized(clone: ir.Model, sizes: Iterable[tuple[str, int, int]]) -> ir.Model | None:
    inputs = {v.name: v for v in clone.graph.inputs}
    changed = False
    for name, axis, size in sizes:
        value = inputs.get(name)
        if value is not None and value.shape is not None:
            value.shape = ir.Shape([size if k == axis else d for k, d in enumerate(value.shape)])
            changed = True
    if not changed:
        return clone
    forget_shapes(clone)
    try:
        infer_shapes(clone)
    except ModelError:
        return None
    return clone


def plain_weights(model: ir.Model) -> list[str]:
    """Float weights of more than one element that are not all ones, by name."""
    found: list[str] = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.size > 1 and tensor.dtype.is_floating_point():
            array = tensor.numpy()
            if not (array == array.dtype.type(1)).all():
                found.append(name)
    return found
