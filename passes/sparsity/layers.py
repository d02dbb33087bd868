"""The weights that are pruned: one entry for each constant, however many nodes read it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.base import Report
from graphopt.graph import constant_array
from graphopt.passes.correct.rows import data_index
from graphopt.passes.sparsity.patterns import Pattern, objection
from graphopt.passes.weights import Weight, find_weight, input_axis, is_weighted, matches, output_axis

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A constant `root` that is the weight of `weights`; `axes` of the root count input and output channels."""

    root: ir.Value
    weights: tuple[Weight, ...]
    axes: tuple[int | None, int | None]

    @property
    def name(self) -> str:
        """The constant's."""
        return str(self.root.name)

    @property
    def array(self) -> Array:
        """The constant as it is now."""
        array = constant_array(self.root)
        assert array is not None
        return array

    def refused(self, graph: ir.Graph) -> str | None:
        """Why it is no layer ``y = W x`` of its own that can be refitted; None where it is one."""
        (weight, *others), node = self.weights, self.weights[0].node
        if others or len(self.root.uses()) > 1:
            return "several nodes read its weight"
        if node.graph is not graph:
            return "it is inside a subgraph"
        if weight.permutation is None:
            return "a Reshape stands before its weight"
        if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
            return "alpha or beta is not 1"
        index = data_index(node, weight.index)
        return index if isinstance(index, str) else None

    def put(self, array: Array) -> None:
        """The constant becomes `array`: an initializer, or the Constant node that yields it."""
        assert self.root.dtype is not None
        tensor = ir.Tensor(array.astype(self.array.dtype), dtype=self.root.dtype, name=self.root.name)
        node = self.root.producer()
        if node is not None:
            node.attributes.clear()
            node.attributes.add(ir.AttrTensor("value", tensor))
        self.root.const_value = tensor


def find(
    model: ir.Model, pattern: Pattern, include: tuple[str, ...], exclude: tuple[str, ...], report: Report
) -> list[Layer]:
    """The layers to prune in order of the graph; those left alone are reported with the reason."""
    by_root: dict[ir.Value, list[Weight]] = {}
    for node in model.graph.all_nodes():
        if not is_weighted(node):
            continue
        weight = find_weight(node)
        if weight is None:
            report.skip(node.name, "its weight is not a float constant")
        else:
            by_root.setdefault(weight.root, []).append(weight)
    found: list[Layer] = []
    for root, weights in by_root.items():
        layer = Layer(root, tuple(weights), (_axis(weights, input_axis), _axis(weights, output_axis)))
        reason = _objection(layer, pattern, include, exclude)
        if reason is None:
            found.append(layer)
        for weight in weights if reason else ():
            report.skip(weight.node.name, str(reason))
    return found


def _axis(weights: list[Weight], axis_of: Any) -> int | None:
    """The axis of the root that all nodes agree on."""
    axes = {None if (axis := axis_of(w)) is None or w.permutation is None else w.permutation[axis] for w in weights}
    return axes.pop() if len(axes) == 1 else None


def _objection(layer: Layer, pattern: Pattern, include: tuple[str, ...], exclude: tuple[str, ...]) -> str | None:
    nodes, root, array = [w.node for w in layer.weights], layer.root, layer.array
    if include and not any(matches(node, include) for node in nodes):
        return "not included"
    if any(matches(node, exclude) for node in nodes):
        return "excluded" if len(nodes) == 1 else f"excluded: {root.name!r} is shared with an excluded node"
    if root.dtype is None or not root.dtype.is_floating_point():
        return f"its weight {root.name!r} is {array.dtype}, not a float"
    if array.size < 2:
        return f"its weight {root.name!r} has {array.size} elements"
    if not np.isfinite(array.astype(np.float32, copy=False)).all():
        return f"its weight {root.name!r} is not finite"
    why = objection(pattern, array.shape, *layer.axes)
    return None if why is None else f"its weight {root.name!r} {why}"
