"""Take units out: constants are sliced along every axis, and what states sizes is stated anew."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, constant_array, infer_shapes, remove_unused
from graphopt.graph.edit import forget_names
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.channels.axes import Ids, sizes
from graphopt.passes.channels.groups import Channels
from graphopt.passes.channels.moves import slices

Array: TypeAlias = np.ndarray[Any, Any]


def cut(model: ir.Model, channels: Channels, keep: Array) -> None:
    """Leave only the units that the mask `keep` names. The graph is valid afterwards, its shapes inferred anew."""
    for node in list(model.graph):
        if node.outputs[0] in channels.axes.of and is_onnx(node, *_RESTATE):
            _RESTATE[node.op_type](model.graph, node, channels, keep)
    for value in channels.axes.constants:
        _slice_constant(value, [_stays(channels, ids, keep) for ids in channels.axes.of[value]])
    for node in model.graph:
        for value in node.outputs:
            _resize(value, channels, keep)
    remove_unused(model)
    forget_names(model)
    infer_shapes(model)


def kept_places(channels: Channels, keep: Array) -> dict[str, list[Array | None]]:
    """By name of a constant: for each axis the indices that stay, None where all do."""
    return {
        str(value.name): [_stays(channels, ids, keep) for ids in channels.axes.of[value]]
        for value in channels.axes.constants
    }


def _stays(channels: Channels, ids: Ids, keep: Array) -> Array | None:
    mask = None if ids is None else keep[channels.unit[ids]]
    return None if mask is None or mask.all() else np.flatnonzero(mask)


def _slice_constant(value: ir.Value, places: list[Array | None]) -> None:
    if all(place is None for place in places):
        return
    array = constant_array(value)
    assert array is not None
    for axis, place in enumerate(places):
        array = array if place is None else np.take(array, place, axis)
    replace_constant(value, array)


def replace_constant(value: ir.Value, array: Array) -> None:
    """Put another array in the place of a constant, an initializer's or a Constant node's."""
    assert value.dtype is not None
    tensor = ir.Tensor(np.ascontiguousarray(array), dtype=value.dtype, name=value.name)
    node = value.producer()
    if node is not None:
        node.attributes.clear()
        node.attributes.add(ir.AttrTensor("value", tensor))
    value.const_value = tensor
    value.shape = ir.Shape(array.shape)


def _resize(value: ir.Value, channels: Channels, keep: Array) -> None:
    dims = channels.axes.of.get(value)
    if dims is None or value.shape is None:
        return
    places = [_stays(channels, ids, keep) for ids in dims]
    value.shape = ir.Shape([n if place is None else len(place) for n, place in zip(value.shape, places, strict=True)])


def _lengths(value: ir.Value, channels: Channels, keep: Array) -> list[int | str]:
    """The lengths of the axes of `value` afterwards."""
    places = [_stays(channels, ids, keep) for ids in channels.axes.of[value]]
    return [n if place is None else len(place) for n, place in zip(sizes(value), places, strict=True)]


# ---- what states sizes --------------------------------------------------------------------------------------


def _groups(graph: ir.Graph, node: ir.Node, channels: Channels, keep: Array) -> None:
    x, weight = node.inputs[:2]
    if node.attributes.get_int("group", 1) == 1 or x is None or weight is None or x not in channels.axes.of:
        return
    inputs = _lengths(x, channels, keep)[1]
    if not isinstance(inputs, int):
        return
    per_group = _lengths(weight, channels, keep)[1]
    if node.op_type == "Conv":
        assert isinstance(per_group, int)
        node.attributes.add(ir.AttrInt64("group", inputs // per_group))
    elif node.attributes.get_int("group", 1) == sizes(x)[1]:
        node.attributes.add(ir.AttrInt64("group", inputs))


def _reshape(graph: ir.Graph, node: ir.Node, channels: Channels, keep: Array) -> None:
    output, shape = node.outputs[0], constant_array(node.inputs[1])
    after = _lengths(output, channels, keep)
    if shape is None:
        known = sum(isinstance(n, int) for n in after)
        if known >= len(after) - 1:
            stated = [n if isinstance(n, int) else -1 for n in after]
            node.replace_input_with(1, add_constant(graph, f"{node.name}_shape", np.array(stated, np.int64)))
        return
    stated = [
        new if entry > 0 and isinstance(new, int) else entry for entry, new in zip(shape.tolist(), after, strict=True)
    ]
    if stated != shape.tolist():
        node.replace_input_with(1, add_constant(graph, f"{node.name}_shape", np.array(stated, np.int64)))


def _split(graph: ir.Graph, node: ir.Node, channels: Channels, keep: Array) -> None:
    value = node.inputs[0]
    assert value is not None
    axis = node.attributes.get_int("axis", 0) % len(channels.axes.of[value])
    if _stays(channels, channels.axes.of[value][axis], keep) is None:
        return
    parts = np.array([_lengths(output, channels, keep)[axis] for output in node.outputs], np.int64)
    node.attributes.pop("num_outputs", None)
    node.resize_inputs(2)
    node.replace_input_with(1, add_constant(graph, f"{node.name}_split", parts))


def _slice(graph: ir.Graph, node: ir.Node, channels: Channels, keep: Array) -> None:
    value = node.inputs[0]
    assert value is not None
    dims = channels.axes.of[value]
    if all(_stays(channels, ids, keep) is None for ids in dims):
        return
    taken = slices(node, len(dims), sizes(value))
    starts, ends, steps = (np.zeros(len(taken), np.int64) for _ in range(3))
    for k, (axis, part) in enumerate(taken.items()):
        starts[k], ends[k], steps[k] = part.start, _end(part), part.step
        ids = dims[axis]
        if ids is not None and _stays(channels, ids, keep) is not None:
            mask = keep[channels.unit[ids]]
            first, last, _ = part.indices(len(ids))
            starts[k], ends[k] = mask[:first].sum(), mask[:last].sum()
    arrays = {"starts": starts, "ends": ends, "axes": np.array(list(taken), np.int64), "steps": steps}
    node.resize_inputs(5)
    for k, (name, array) in enumerate(arrays.items()):
        node.replace_input_with(k + 1, add_constant(graph, f"{node.name}_{name}", array))


def _end(part: slice) -> int:
    return np.iinfo(np.int64).min if part.stop is None else int(part.stop)


def _gather(graph: ir.Graph, node: ir.Node, channels: Channels, keep: Array) -> None:
    value = node.inputs[0]
    assert value is not None
    dims = channels.axes.of[value]
    ids, chosen = dims[node.attributes.get_int("axis", 0) % len(dims)], constant_array(node.inputs[1])
    if chosen is None or _stays(channels, ids, keep) is None:
        return
    mask = keep[channels.unit[ids]]
    places = (np.cumsum(mask) - 1)[chosen[mask[chosen]]]
    node.replace_input_with(1, add_constant(graph, f"{node.name}_indices", places.astype(np.int64)))


def _sizes(graph: ir.Graph, node: ir.Node, channels: Channels, keep: Array) -> None:
    wanted = constant_array(node.inputs[3]) if len(node.inputs) > 3 else None
    after = _lengths(node.outputs[0], channels, keep)
    if wanted is None or len(wanted) != len(after):
        return
    stated = [new if isinstance(new, int) else int(n) for n, new in zip(wanted, after, strict=True)]
    node.replace_input_with(3, add_constant(graph, f"{node.name}_sizes", np.array(stated, np.int64)))


_RESTATE = {
    "Conv": _groups,
    "ConvTranspose": _groups,
    "Gather": _gather,
    "Reshape": _reshape,
    "Resize": _sizes,
    "Slice": _slice,
    "Split": _split,
}
