"""What a fold will change, collected first and then done at once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, derive, fresh_name
from graphopt.passes.batch_norm.reading import VIEWS, is_onnx

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.passes.batch_norm.affine import Affine

    Array = np.ndarray[Any, Any]


EPSILON = 1e-5
MAKERS = ("Constant", "DequantizeLinear", "Identity", *VIEWS)


@dataclasses.dataclass(frozen=True)
class Scope:
    """Where names must be unique: the model's graph or a function's body, with their subgraphs."""

    root: ir.Graph
    is_function: bool = False

    def constant(self, reader: ir.Node, hint: str, array: Array) -> ir.Value:
        """A new constant for `reader`: an initializer of the model's graph, in a function's body a Constant node."""
        assert reader.graph is not None
        if not self.is_function:
            return add_constant(self.root, hint, array)
        name = fresh_name(self.root, hint)
        tensor = ir.tensor(np.asarray(array, order="C"), name=name)
        node = ir.node("Constant", [], {"value": tensor}, name=name)
        value = node.outputs[0]
        value.name, value.shape, value.dtype = name, ir.Shape(array.shape), tensor.dtype
        reader.graph.insert_before(reader, node)
        return value


@dataclasses.dataclass(frozen=True)
class Edge:
    """Input `index` of `reader` is to hold ``affine(x)`` along `axis` in place of x.

    `kept`: the reader stays in the graph, so the value on the edge needs a new name.
    """

    reader: ir.Node
    index: int
    affine: Affine
    axis: int
    kept: bool = True


@dataclasses.dataclass(frozen=True)
class Stuck:
    """An edge whose producer does not absorb the map, and why."""

    edge: Edge
    reason: str


@dataclasses.dataclass
class Plan:
    """The edits of one fold, in the order in which the walk found them; done in the reverse order.

    `into`: the nodes that absorb the map. `copies`: weights that others read too. `stuck`: see `fold_before`.
    """

    edits: list[tuple[Callable[..., None], tuple[Any, ...]]] = dataclasses.field(default_factory=list[Any])
    into: list[ir.Node] = dataclasses.field(default_factory=list["ir.Node"])
    copies: list[str] = dataclasses.field(default_factory=list[str])
    stuck: list[Stuck] = dataclasses.field(default_factory=list[Stuck])

    def add(self, edit: Callable[..., None], *arguments: Any) -> None:
        """Record ``edit(scope, *arguments)``."""
        self.edits.append((edit, arguments))

    def mark(self) -> tuple[int, int, int]:
        """Where the plan stands, for `back_to`."""
        return len(self.edits), len(self.into), len(self.copies)

    def back_to(self, mark: tuple[int, int, int]) -> None:
        """Forget what was planned since `mark`."""
        del self.edits[mark[0] :], self.into[mark[1] :], self.copies[mark[2] :]

    def apply(self, scope: Scope, batch_norm: ir.Node) -> None:
        """Do the edits; every node that absorbed the map inherits the sources of `batch_norm`."""
        for edit, arguments in reversed(self.edits):
            edit(scope, *arguments)
        for node in self.into:
            derive(node, [batch_norm])


def feed(scope: Scope, node: ir.Node, index: int, array: Array, hint: str) -> None:
    """Input `index` of `node` becomes a new constant."""
    value = scope.constant(node, hint, array)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    node.replace_input_with(index, value)
    release(old)


def feed_dequantized(
    scope: Scope, node: ir.Node, index: int, arrays: list[Array], attributes: dict[str, int], hint: str
) -> None:
    """Input `index` of `node` becomes a new DequantizeLinear of `arrays` (integers, scale, zero point)."""
    assert node.graph is not None
    old = node.inputs[index]
    assert old is not None
    names = [f"{hint}{suffix}" for suffix in ("_quantized", "_scale", "_zero_point")]
    inputs = [scope.constant(node, n, a) for n, a in zip(names, arrays, strict=False)]
    name = fresh_name(scope.root, hint)
    value = ir.Value(name=name, type=old.type, shape=old.shape)
    new = ir.node("DequantizeLinear", inputs, attributes, outputs=[value], name=name)
    node.graph.insert_before(node, new)
    producer = old.producer()
    if producer is not None:
        derive(new, [producer])
    node.replace_input_with(index, value)
    release(old)


def set_float(scope: Scope, node: ir.Node, name: str, number: float) -> None:
    """Attribute `name` of `node` becomes `number`."""
    node.attributes[name] = ir.AttrFloat32(name, number)


def drop(scope: Scope, node: ir.Node, index: int, take_name: bool) -> None:
    """Remove `node`; its readers read its input `index`, which takes the name of the output if `take_name`."""
    assert node.graph is not None
    out, kept = node.outputs[0], node.inputs[index]
    assert kept is not None
    out.replace_all_uses_with(kept, replace_graph_outputs=True)
    if take_name:
        kept.name = out.name
        kept.shape = out.shape if kept.shape is None else kept.shape
    inputs = list(node.inputs)
    node.graph.remove(node, safe=True)
    for value in inputs:
        release(value)


def rename(scope: Scope, node: ir.Node, index: int) -> None:
    """Input `index` of `node` holds other numbers from now on, so it may not keep its name."""
    value = node.inputs[index]
    assert value is not None
    value.name = fresh_name(scope.root, f"{value.name}_folded")


def insert_add(scope: Scope, node: ir.Node, array: Array) -> None:
    """Put an Add of the constant `array` behind `node`; the sum takes over the name and the readers."""
    assert node.graph is not None
    out = node.outputs[0]
    total = ir.Value(name=out.name, type=out.type, shape=out.shape)
    out.replace_all_uses_with(total, replace_graph_outputs=True)
    out.name = fresh_name(scope.root, f"{out.name}_unshifted")
    name = fresh_name(scope.root, f"{node.name}_shift")
    add = ir.node("Add", [out], outputs=[total], name=name)
    node.graph.insert_after(node, add)
    feed(scope, add, 1, array, f"{name}_bias")
    derive(add, [node])


def insert_batch_norm(scope: Scope, edge: Edge, like: ir.Node, arrays: list[Array]) -> ir.Node:
    """A BatchNormalization with parameters `arrays` (γ, β, μ, σ²) and ε = `EPSILON` on `edge`."""
    reader, index = edge.reader, edge.index
    assert reader.graph is not None
    value = reader.inputs[index]
    assert value is not None
    name = fresh_name(scope.root, f"{like.name}_{index}")
    out = ir.Value(name=fresh_name(scope.root, f"{value.name}_normalised"), type=value.type, shape=value.shape)
    node = ir.node("BatchNormalization", [value], {"epsilon": EPSILON}, outputs=[out], name=name)
    reader.graph.insert_before(reader, node)
    for i, (array, what) in enumerate(zip(arrays, ("scale", "bias", "mean", "variance"), strict=True), start=1):
        feed(scope, node, i, array, f"{name}_{what}")
    reader.replace_input_with(index, out)
    derive(node, [like])
    return node


def release(value: ir.Value | None) -> None:
    """Remove a constant that nobody reads any more, with the nodes that made it."""
    if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    if value.is_initializer():
        assert value.graph is not None
        assert value.name is not None
        value.graph.initializers.pop(value.name)
        return
    producer = value.producer()
    if producer is None or producer.graph is None or not is_onnx(producer, *MAKERS):
        return
    inputs = list(producer.inputs)
    producer.graph.remove(producer, safe=True)
    for source in inputs:
        release(source)


def rename_output(scope: Scope, node: ir.Node) -> None:
    """The output of `node` holds other numbers from now on, so it may not keep its name."""
    value = node.outputs[0]
    value.name = fresh_name(scope.root, f"{value.name}_unfolded")
