"""Checks in front of operators that ONNX lets fail on their data: indices beyond what they index, integers over zero.

TVM compiles both to code that reads foreign memory or ends the process; onnxruntime refuses such inputs. Here a node of
graphopt's own domain stands before the operator where its operand is not known to be fine:

- ``InRange(indices, data?)`` gives the indices, negative ones counted from the start;
- ``NotZero(divisor)`` gives the divisor.

The llvm target has kernels for them that refuse the run and name the operator (`targets/llvm/plan/checks.py`). Where
there are none, as on a GPU, they bring indices and divisors into range (`converters.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array, provenance
from graphopt.targets.lowering.nodes import constant, put, take_place
from graphopt.targets.lowering.support import IN_RANGE, NOT_ZERO, refusal

INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
LIMITS: dict[str, Callable[[int], tuple[int, int]]] = {
    "index": lambda size: (-size, size - 1),
    "place": lambda size: (0, size - 1),
    "length": lambda size: (0, size),
}
"""The least and the greatest index of so many elements. A length stays as it is; others are counted from the start."""


@dataclasses.dataclass(frozen=True)
class Indexing:
    """Input `operand` indexes something of these `sizes`: one for all indices, or one for each of the last dimension.

    A size that is -1 is that of `data` along the axis of the same place in `axes`.
    """

    operand: int
    sizes: tuple[int, ...]
    data: ir.Value | None = None
    axes: tuple[int, ...] = ()
    kind: str = "index"


Found = list[Indexing | None]
"""None for what is not known."""


def guard(model: ir.Model) -> None:
    """Put checks into `model`, branches and bodies included, in place.

    Raises:
        LoweringError: naming the nodes that will always fail, or can't be checked.
    """
    reasons: dict[str, list[ir.Node]] = {}
    made: dict[object, ir.Value] = {}
    for node in list(model.graph.all_nodes()):
        if node.domain == "" and node.op_type in ("Div", "Mod"):
            reason = _check_divisor(node)
        else:
            find = _INDEXING.get((node.domain, node.op_type))
            reason = None if find is None else _check_indices(node, find(node), made)
        if reason:
            reasons.setdefault(f"{node.op_type} ({reason})", []).append(node)
    if reasons:
        raise refusal(reasons, model)


def _check_indices(node: ir.Node, indexing: Found, made: dict[object, ir.Value]) -> str | None:
    for found in indexing:
        indices = node.inputs[found.operand] if found is not None else None
        if found is None or indices is None or indices.shape is None or indices.dtype not in INTEGERS:
            return "what it indexes, and by what, is not known"
        array = constant_array(indices)
        fits = None if array is None else _fits(array, found)
        if fits is False:
            return "an index is out of range"
        if not fits:
            key = (
                node.graph,
                indices,
                found.sizes,
                found.kind,
                *([found.data, found.axes] if -1 in found.sizes else []),
            )
            if key not in made:
                made[key] = _in_range(node, indices, found)
            node.replace_input_with(found.operand, made[key])
    return None


def _fits(array: np.ndarray, found: Indexing) -> bool | None:
    """Whether constant indices are in range; None where that depends on an open size."""
    for k, size in enumerate(found.sizes):
        own = array[..., k] if len(found.sizes) > 1 else array
        low, high = LIMITS[found.kind](max(size, 0))
        if size >= 0 and not np.all((own >= low) & (own <= high)):
            return False
    return None if -1 in found.sizes and array.size else True


def _in_range(node: ir.Node, indices: ir.Value, found: Indexing) -> ir.Value:
    several = "" if len(found.sizes) == 1 else "s"
    along = f" axis {found.axes[0]}" if len(found.axes) == 1 else f" axes {', '.join(map(str, found.axes))}"
    what = "an index" if found.kind != "length" else "a length"
    size = f" of {found.sizes[0]} elements" if min(found.sizes) >= 0 and not several else ""
    message = f"{_named(node)}: {what} in {indices.name!r} is beyond{along if found.axes else ' its output'}{size}"
    inputs = [indices, found.data] if -1 in found.sizes else [indices]
    attributes = {"sizes": found.sizes, "axes": found.axes, "kind": found.kind, "message": message}
    return put(node, IN_RANGE[1], inputs, attributes, domain=IN_RANGE[0], dtype=indices.dtype, like=indices)


def _named(node: ir.Node) -> str:
    source = provenance.sources(node)
    return f"{node.op_type} {source[0] if source else node.name!r}"


def _check_divisor(node: ir.Node) -> str | None:
    """Of integers. The least one over -1 is itself, as in two's complement, where processors raise an exception."""
    x, by = node.inputs
    if x is None or by is None or by.dtype is None or not by.dtype.is_integer():
        return None
    array = constant_array(by)
    if array is not None and not np.all(array):
        return "it divides by zero"
    if array is None:
        if _is_of_sizes(by):
            return None
        message = f"{_named(node)}: an integer is divided by zero"
        by = put(node, NOT_ZERO[1], [by], {"message": message}, domain=NOT_ZERO[0], dtype=by.dtype, like=by)
        node.replace_input_with(1, by)
    if by.dtype is not None and by.dtype.is_signed() and (array is None or np.any(array == -1)):
        _wrap(node, x, by)
    return None


def _wrap(node: ir.Node, x: ir.Value, by: ir.Value) -> None:
    """``x / -1 = 0 - x`` and ``x mod -1 = 0``; `node` itself divides by 1 there."""
    assert by.dtype is not None
    zero, one, minus = (constant(node, "number", np.array(k, by.dtype.numpy())) for k in (0, 1, -1))
    turned = put(node, "Equal", [by, minus], dtype=ir.DataType.BOOL, like=by)
    safe = put(node, "Where", [turned, one, by], dtype=by.dtype, like=by)
    attributes = {name: attribute.as_int() for name, attribute in node.attributes.items()}
    divided = put(node, node.op_type, [x, safe], attributes, dtype=by.dtype, like=node.outputs[0])
    other = put(node, "Sub", [zero, x], dtype=by.dtype, like=x) if node.op_type == "Div" else zero
    take_place(node, put(node, "Where", [turned, other, divided], dtype=by.dtype, like=node.outputs[0]))
    assert isinstance(node.graph, ir.Graph)
    node.graph.remove(node, safe=True)


def _is_of_sizes(value: ir.Value | None) -> bool:
    """Whether it is made of sizes and of numbers above zero, so that it is too: the importer has an expression."""
    array = constant_array(value)
    if array is not None:
        return bool(np.all(array > 0))
    node = None if value is None else value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type in ("Shape", "Size"):
        return True
    if node.op_type in _PICKS:
        return _is_of_sizes(node.inputs[0])
    return node.op_type in _KEEP_ABOVE_ZERO and all(map(_is_of_sizes, node.inputs))


_PICKS = frozenset({"Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"})
_KEEP_ABOVE_ZERO = frozenset({"Add", "Concat", "Max", "Min", "Mul"})


def _indexing(node: ir.Node, operand: int, data: int, axes: Sequence[int], kind: str = "index") -> Indexing | None:
    source = node.inputs[data]
    if source is None or source.shape is None:
        return None
    dims = [source.shape[axis] for axis in axes]
    sizes = tuple(dim if isinstance(dim, int) else -1 for dim in dims)
    return Indexing(operand, sizes, source, tuple(axis % len(source.shape) for axis in axes), kind)


def _along_axis(node: ir.Node) -> Found:
    return [_indexing(node, 1, 0, [node.attributes.get_int("axis", 0)])]


def _in_time(node: ir.Node) -> Found:
    return [_indexing(node, 1, 0, [node.attributes.get_int("time_axis", 0)], "length")]


def _coordinates(node: ir.Node) -> Found:
    indices, first = node.inputs[1], node.attributes.get_int("batch_dims", 0)
    last = None if indices is None or not indices.shape else indices.shape[-1]
    return [_indexing(node, 1, 0, range(first, first + last)) if isinstance(last, int) else None]


def _in_output(node: ir.Node) -> Found:
    shape = node.outputs[0].shape
    return [Indexing(1, (math.prod(shape.numpy()),), kind="place") if shape is not None and shape.is_static() else None]


def _embeddings(node: ir.Node) -> Found:
    tables = [(0, 2), (1, 4)] if node.inputs[1] is not None else [(0, 2)]
    return [_indexing(node, operand, table, [0]) for operand, table in tables]


_INDEXING: dict[tuple[str, str], Callable[[ir.Node], Found]] = {
    **dict.fromkeys((("", name) for name in ("Gather", "GatherElements", "Scatter", "ScatterElements")), _along_axis),
    **dict.fromkeys((("", name) for name in ("GatherND", "ScatterND")), _coordinates),
    ("", "MaxUnpool"): _in_output,
    ("", "ReverseSequence"): _in_time,
    ("com.microsoft", "EmbedLayerNormalization"): _embeddings,
}
