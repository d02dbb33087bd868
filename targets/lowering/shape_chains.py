"""Shapes computed by the graph, written the one way the importer reads.

Exporters compute the target of a Reshape by Shape, Cast, Slice, Gather, Concat and arithmetic. Each such tensor is
evaluated element by element: an int, a dimension of some value, or unknown. Then

- Reshape's target becomes a constant where at most one element is not an int: that one is -1, or 0 where it is the
  input's own dimension;
- Expand's and ConstantOfShape's becomes a Concat of ints and slices of Shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, constant_array, fresh_name, infer_shapes

MAX_ROUNDS = 16  # each round makes the shapes up to the next computed Reshape known
MAX_ELEMENTS = 16  # no tensor has more dimensions; longer integer tensors are data, not shapes


@dataclasses.dataclass(frozen=True)
class Dim:
    """Dimension `axis` of `value`; `name` is its symbolic name, None where two may be called alike and differ."""

    value: ir.Value
    axis: int
    name: str | None


Element = int | Dim | None
Elements = list[Element]


def simplify_shape_chains(model: ir.Model) -> None:
    """Rewrite computed shapes in place, main graph and branches, until nothing changes."""
    for _ in range(MAX_ROUNDS):
        known: dict[ir.Value, Elements | None] = {}
        changed = False
        for node in list(model.graph.all_nodes()):
            rewrite = _REWRITES.get(node.op_type) if node.domain == "" else None
            if rewrite is not None:
                changed = rewrite(node, model.graph, known) or changed
        if not changed:
            return
        infer_shapes(model)


def _rewrite_reshape(node: ir.Node, graph: ir.Graph, known: dict[ir.Value, Elements | None]) -> bool:
    target = node.inputs[1]
    if target is None or constant_array(target) is not None or node.attributes.get_int("allowzero", 0):
        return False
    elements = elements_of(target, known)
    if elements is None:
        return False
    own = _shape(node.inputs[0]) or []
    sizes = [0 if _same(element, own[axis : axis + 1]) else element for axis, element in enumerate(elements)]
    if sum(not isinstance(size, int) or size == -1 for size in sizes) > 1:
        return False
    array = np.array([size if isinstance(size, int) else -1 for size in sizes], np.int64)
    node.replace_input_with(1, add_constant(graph, f"{node.name}_shape", array))
    return True


def _same(element: Element, own: Sequence[Element]) -> bool:
    """Whether `element` is the input's own (symbolic) dimension at its place."""
    return bool(own) and isinstance(element, Dim) and isinstance(own[0], Dim) and element.name == own[0].name != None  # noqa: E711


def _rewrite_target(index: int) -> Callable[[ir.Node, ir.Graph, dict[ir.Value, Elements | None]], bool]:
    def rewrite(node: ir.Node, graph: ir.Graph, known: dict[ir.Value, Elements | None]) -> bool:
        target = node.inputs[index]
        if target is None or constant_array(target) is not None or target.metadata_props.get(_WRITTEN):
            return False
        elements = elements_of(target, known)
        if elements is None or any(element is None for element in elements):
            return False
        node.replace_input_with(index, _write(elements, node, graph))
        return True

    return rewrite


_WRITTEN = "graphopt.shape"
_REWRITES: dict[str, Callable[[ir.Node, ir.Graph, dict[ir.Value, Elements | None]], bool]] = {
    "Reshape": _rewrite_reshape,
    "Expand": _rewrite_target(1),
    "ConstantOfShape": _rewrite_target(0),
}


def _write(elements: Elements, before: ir.Node, graph: ir.Graph) -> ir.Value:
    """Nodes that compute `elements`, put before the node that needs them."""
    if all(isinstance(element, int) for element in elements):
        return add_constant(graph, f"{before.name}_shape", np.array(elements, np.int64))
    parts: list[ir.Value] = []
    for element in elements:
        if isinstance(element, Dim):
            shape = _append(before, graph, "Shape", [element.value], length=len(element.value.shape or ()))
            bounds = [np.array([bound], np.int64) for bound in (element.axis, element.axis + 1, 0)]
            slices = [add_constant(graph, f"{before.name}_slice", bound) for bound in bounds]
            parts.append(_append(before, graph, "Slice", [shape, *slices], length=1))
        else:
            parts.append(add_constant(graph, f"{before.name}_size", np.array([element], np.int64)))
    axis = [ir.AttrInt64("axis", 0)]
    return _append(before, graph, "Concat", parts, length=len(elements), attributes=axis)


def _append(
    before: ir.Node, graph: ir.Graph, op: str, inputs: list[ir.Value], length: int, attributes: Sequence[ir.Attr] = ()
) -> ir.Value:
    output = ir.Value(
        name=fresh_name(graph, f"{before.name}_{op}"), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([length])
    )
    output.metadata_props[_WRITTEN] = "yes"
    node = ir.Node("", op, inputs, attributes, outputs=[output], name=output.name)
    owner = before.graph
    assert owner is not None
    owner.insert_before(before, node)
    return output


def elements_of(value: ir.Value | None, known: dict[ir.Value, Elements | None]) -> Elements | None:
    """The elements of an integer scalar or vector, as far as they can be told; None where its length can't."""
    if value is None:
        return None
    if value not in known:
        known[value] = None  # guards against recursion through a malformed graph
        known[value] = _evaluate(value, known)
    return known[value]


def _evaluate(value: ir.Value, known: dict[ir.Value, Elements | None]) -> Elements | None:
    if value.dtype is None or not (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL):
        return None
    array = constant_array(value)
    if array is not None:
        return None if array.ndim > 1 or array.size > MAX_ELEMENTS else [int(item) for item in array.ravel()]
    node = value.producer()
    if node is None or node.domain != "":
        return _unknown(value)
    inputs = [elements_of(operand, known) for operand in node.inputs]
    evaluate = _EVALUATE.get(node.op_type)
    result = None
    if node.op_type == "Shape":
        result = _slice_shape(node)
    elif evaluate is not None and inputs[0] is not None:
        result = evaluate(node, inputs)
    return result if result is not None else _unknown(value)


def _unknown(value: ir.Value) -> Elements | None:
    """All elements unknown, if at least their number is known."""
    shape = value.shape
    if shape is None or len(shape) > 1 or not shape.is_static():
        return None
    length = int(np.prod(shape.numpy()))
    unknown: Elements = [None]
    return unknown * length if length <= MAX_ELEMENTS else None


def _shape(value: ir.Value | None) -> Elements | None:
    if value is None or value.shape is None:
        return None
    return [
        dim if isinstance(dim, int) else Dim(value, axis, str(dim.value) if dim.value is not None else None)
        for axis, dim in enumerate(value.shape)
    ]


def _slice_shape(node: ir.Node) -> Elements | None:
    shape = _shape(node.inputs[0])
    end = node.attributes.get("end")
    return None if shape is None else shape[node.attributes.get_int("start", 0) : end.as_int() if end else None]


def _pass_on(_node: ir.Node, inputs: list[Elements | None]) -> Elements | None:
    return inputs[0]


def _cast(node: ir.Node, inputs: list[Elements | None]) -> Elements | None:
    """To a boolean: whether it is zero, which is not known of a dimension."""
    if inputs[0] is None or node.outputs[0].dtype != ir.DataType.BOOL:
        return inputs[0]
    return [int(element != 0) if isinstance(element, int) else None for element in inputs[0]]


def _concat(_node: ir.Node, inputs: list[Elements | None]) -> Elements | None:
    joined: Elements = []
    for part in inputs:
        if part is None:
            return None
        joined += part
    return joined


def _gather(_node: ir.Node, inputs: list[Elements | None]) -> Elements | None:
    data, indices = inputs
    if data is None or indices is None or not all(isinstance(index, int) for index in indices):
        return None
    return [data[index] for index in indices if isinstance(index, int)]


def _slice(_node: ir.Node, inputs: list[Elements | None]) -> Elements | None:
    data, start, end, *rest = inputs
    step = rest[1] if len(rest) > 1 else [1]
    bounds = [bound[0] if bound and isinstance(bound[0], int) else None for bound in (start, end, step)]
    if data is None or any(bound is None for bound in bounds):
        return None
    return data[slice(*bounds)]


def _arithmetic(operator: Callable[[int, int], int]) -> Callable[[ir.Node, list[Elements | None]], Elements | None]:
    def evaluate(_node: ir.Node, inputs: list[Elements | None]) -> Elements | None:
        left, right = inputs
        if left is None or right is None or (len(left) != len(right) and 1 not in (len(left), len(right))):
            return None
        length = max(len(left), len(right))
        pairs = zip(left * (length // len(left)), right * (length // len(right)), strict=True)
        return [operator(a, b) if isinstance(a, int) and isinstance(b, int) else None for a, b in pairs]

    return evaluate


def _equal(_node: ir.Node, inputs: list[Elements | None]) -> Elements | None:
    """1 or 0; a dimension is never negative."""
    left, right = inputs
    if left is None or right is None or len(left) != len(right):
        return None
    return [_equal_elements(a, b) for a, b in zip(left, right, strict=True)]


def _equal_elements(a: Element, b: Element) -> int | None:
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    number = b if isinstance(a, Dim) else a
    return 0 if (isinstance(a, Dim) or isinstance(b, Dim)) and isinstance(number, int) and number < 0 else None


def _where(_node: ir.Node, inputs: list[Elements | None]) -> Elements | None:
    condition, yes, no = inputs
    if condition is None or yes is None or no is None or not len(condition) == len(yes) == len(no):
        return None
    return [None if c is None else (y if c else n) for c, y, n in zip(condition, yes, no, strict=True)]


def _reshape(node: ir.Node, inputs: list[Elements | None]) -> Elements | None:
    """Of a vector to a vector."""
    shape = node.outputs[0].shape
    return inputs[0] if shape is not None and len(shape) == 1 else None


_EVALUATE: dict[str, Callable[[ir.Node, list[Any]], Elements | None]] = {
    **dict.fromkeys(("Identity", "Squeeze", "Unsqueeze"), _pass_on),
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Equal": _equal,
    "Where": _where,
    "Reshape": _reshape,
    "Add": _arithmetic(lambda a, b: a + b),
    "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b),
}
