"""Magnitude pruning: ``W_pruned = W * mask`` with ``mask = |w| not among the smallest``."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.errors import UsageError
from graphopt.graph import constant_array
from graphopt.passes.magnitude import smallest, smallest_of_groups
from graphopt.passes.weights import Weight, find_weight, input_axis, is_weighted, matches

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PruneMagnitude(Pass):
    """Sets the weights of smallest magnitude to zero, per layer, over the whole model, or N of every M.

    sparsity: fraction of the weights to zero, in [0, 1); 0.5 unless the pattern fixes it.
    scope: "layer": the same fraction of each weight tensor; "global": one threshold for all, no tensor emptied.
    pattern: "unstructured", or "N:M": of each M neighbours along the input channels the N largest stay.
    include, exclude: node names or operators, ``*`` allowed; all weighted nodes are included by default.

    Weights are the constant operands of Conv, ConvTranspose, Gemm and MatMul; biases and normalisation are left
    alone. A tensor that several nodes share is one tensor: counted and masked once, seen masked by all of them,
    and excluded when one of them is. Shapes, and thereby dense speed and file size, stay as they are.
    """

    name: ClassVar[str] = "prune-magnitude"
    preserves: ClassVar[Preserves] = LOSSY

    sparsity: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    scope: Literal["layer", "global"] = "layer"
    pattern: str = "unstructured"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        groups = _groups(self.pattern)
        if groups and (self.sparsity is not None or self.scope == "global"):
            raise UsageError(
                f"'prune-magnitude': the pattern {self.pattern} fixes what is kept of every {groups[1]} weights, "
                "so sparsity and scope=global can't be given with it."
            )

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Mask the weights in place; facts: `sparsity` by tensor, `zeros` and `weights` over all of them."""
        report = Report()
        chosen = _choose(model, self.include, self.exclude, report)
        roots = [weights[0].root for weights in chosen]
        groups = _groups(self.pattern)
        if groups:
            _prune_groups(chosen, *groups, report)
        else:
            sparsity = 0.5 if self.sparsity is None else self.sparsity
            for part in [roots] if self.scope == "global" and roots else [[root] for root in roots]:
                for root, mask in zip(part, smallest([_array(v) for v in part], sparsity), strict=True):
                    _mask(root, mask)
        zeros = {str(v.name): _zeros(v) for v in roots}
        sizes = {str(v.name): _array(v).size for v in roots}
        for weights in chosen:
            name = str(weights[0].root.name)
            for weight in weights:
                report.change(weight.node.name, f"{zeros[name]} of {sizes[name]} weights in {name!r} are zero")
        report.facts["sparsity"] = {name: zeros[name] / sizes[name] for name in zeros}
        report.facts["zeros"], report.facts["weights"] = sum(zeros.values()), sum(sizes.values())
        return report


def _groups(pattern: str) -> tuple[int, int] | None:
    """(N, M) of an N:M pattern, None for "unstructured"."""
    if pattern == "unstructured":
        return None
    match = re.fullmatch(r"(\d+):(\d+)", pattern)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise UsageError(f"'prune-magnitude': pattern must be unstructured or N:M with 0 < N < M, not {pattern!r}.")
    return int(match[1]), int(match[2])


def _choose(model: ir.Model, include: tuple[str, ...], exclude: tuple[str, ...], report: Report) -> list[list[Weight]]:
    """The weights to prune, grouped by the tensor they share."""
    by_root: dict[ir.Value, list[Weight]] = {}
    for node in model.graph.all_nodes():
        if not is_weighted(node):
            continue
        weight = find_weight(node)
        if weight is None:
            report.skip(node.name, "its weight is not a float constant")
        else:
            by_root.setdefault(weight.root, []).append(weight)
    chosen: list[list[Weight]] = []
    for root, weights in by_root.items():
        reason = _objection(root, [w.node for w in weights], include, exclude)
        if reason is None:
            chosen.append(weights)
        for weight in weights if reason else ():
            report.skip(weight.node.name, str(reason))
    return chosen


def _objection(root: ir.Value, nodes: list[ir.Node], include: tuple[str, ...], exclude: tuple[str, ...]) -> str | None:
    if include and not any(matches(node, include) for node in nodes):
        return "not included"
    if any(matches(node, exclude) for node in nodes):
        return "excluded" if len(nodes) == 1 else f"excluded: {root.name!r} is shared with an excluded node"
    array = _array(root)
    if root.dtype is None or not root.dtype.is_floating_point():
        return f"its weight {root.name!r} is {array.dtype}, not a float"
    if array.size < 2:
        return f"its weight {root.name!r} has {array.size} elements"
    if not np.isfinite(array.astype(np.float32, copy=False)).all():
        return f"its weight {root.name!r} is not finite"
    return None


def _prune_groups(chosen: list[list[Weight]], keep: int, group: int, report: Report) -> None:
    for weights in list(chosen):
        root = weights[0].root
        axes = {_root_axis(w) for w in weights}
        axis = axes.pop() if len(axes) == 1 else None
        length = 0 if axis is None else _array(root).shape[axis]
        if axis is not None and length % group == 0:
            _mask(root, smallest_of_groups(_array(root), axis, keep, group))
            continue
        chosen.remove(weights)
        why = f"has {length} input channels, no multiple of {group}" if axis is not None else "has no one input axis"
        for weight in weights:
            report.skip(weight.node.name, f"its weight {root.name!r} {why}")


def _root_axis(weight: Weight) -> int | None:
    """Axis of the root that counts the node's input channels."""
    axis = input_axis(weight)
    return None if axis is None or weight.permutation is None else weight.permutation[axis]


def _array(root: ir.Value) -> Array:
    array = constant_array(root)
    assert array is not None
    return array


def _zeros(root: ir.Value) -> int:
    array = _array(root)
    return int(array.size - np.count_nonzero(array))


def _mask(root: ir.Value, mask: Array) -> None:
    """Put zeros where `mask` is True, in an initializer or in the Constant node that yields `root`."""
    array = _array(root).copy()
    array[mask] = 0
    assert root.dtype is not None
    tensor = ir.Tensor(array, dtype=root.dtype, name=root.name)
    node = root.producer()
    if node is not None:
        node.attributes.clear()
        node.attributes.add(ir.AttrTensor("value", tensor))
    root.const_value = tensor
