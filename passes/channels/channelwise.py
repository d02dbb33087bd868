"""Operators that go element by element or channel by channel, and those that mix an axis."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.passes.channels.axes import Axes, Dims, Opaque, sizes
from graphopt.passes.channels.operands import integers, mixed, said


def same(axes: Axes, node: ir.Node) -> Dims:
    """A function of each element."""
    return axes.dims(node.inputs[0])


def elementwise(axes: Axes, node: ir.Node) -> Dims:
    """A function of elements in the same place, of operands that broadcast."""
    operands = [value for value in node.inputs if value is not None]
    return broadcast(axes, [axes.dims(v) for v in operands], [sizes(v) for v in operands], said(node))


def broadcast(axes: Axes, operands: list[Dims], shapes: list[list[int | str]], who: str) -> Dims:
    """Ties the axes of operands of these shapes that broadcast against each other; `who` does it."""
    rank = max(map(len, operands))
    found: Dims = []
    for k in range(-rank, 0):
        met = [(d[k], s[k]) for d, s in zip(operands, shapes, strict=True) if len(d) >= -k]
        full = [ids for ids, length in met if length != 1] or [ids for ids, _ in met]
        ids = full[0]
        for other in full[1:]:
            ids = axes.tie(ids, other, f"{who} meets them with what is fixed")
        found.append(ids)
    return found


def quantize(axes: Axes, node: ir.Node) -> Dims:
    """Scales and zero points, one per channel or one for all."""
    dims = axes.dims(node.inputs[0])
    for value in node.inputs[1:]:
        array = constant_array(value)
        if value is None or array is None or array.size == 1:
            continue
        if array.ndim != 1 or node.attributes.get_int("block_size", 0):
            raise Opaque("its scales are not one per channel")
        axis = node.attributes.get_int("axis", 1)
        dims[axis] = axes.tie(dims[axis], axes.dims(value)[0], said(node))
    return dims


def batch_norm(axes: Axes, node: ir.Node) -> Dims:
    """Four vectors with a number per channel."""
    dims = axes.dims(node.inputs[0])
    if node.attributes.get_int("training_mode", 0):
        raise Opaque("it is in training mode")
    for value in node.inputs[1:]:
        dims[1] = axes.tie(dims[1], axes.dims(value)[0], said(node))
    return dims


def instance_norm(axes: Axes, node: ir.Node) -> Dims:
    """Statistics of each channel by itself, and two vectors."""
    dims = image(axes, node)
    for value in node.inputs[1:]:
        dims[1] = axes.tie(dims[1], axes.dims(value)[0], said(node))
    return dims


def image(axes: Axes, node: ir.Node) -> Dims:
    """Channels stay apart, what is behind them does not."""
    dims = axes.dims(node.inputs[0])
    for ids in dims[2:]:
        axes.fix(ids, mixed(node))
    return [*dims[:2], *[None] * (len(dims) - 2)]


def resize(axes: Axes, node: ir.Node) -> Dims:
    """Channels stay apart; the axes behind them do not."""
    dims = axes.dims(node.inputs[0])
    if node.op_type == "Resize":
        integers(node, 3)  # they hold the number of channels too
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    for k, ids in enumerate(dims):
        if ids is not None and (k > 1 or before[k] != after[k]):
            axes.fix(ids, mixed(node))
            dims[k] = None
    return dims


def pad(axes: Axes, node: ir.Node) -> Dims:
    """What is padded does not keep its indices."""
    dims = axes.dims(node.inputs[0])
    pads, chosen = integers(node, 1), integers(node, 3)
    chosen = list(range(len(dims))) if chosen is None else [k % len(dims) for k in chosen]
    assert pads is not None
    for k, axis in enumerate(chosen):
        if pads[k] or pads[k + len(chosen)]:
            axes.fix(dims[axis], mixed(node))
            dims[axis] = None
    return dims


def along(axes: Axes, node: ir.Node) -> Dims:
    """Softmax, TopK...: one axis is mixed, the rest is not."""
    dims = axes.dims(node.inputs[0])
    axis = node.attributes.get_int("axis", -1)
    axes.fix(dims[axis], mixed(node))
    dims[axis] = None
    return dims


def from_axis(axes: Axes, node: ir.Node) -> Dims:
    """LayerNormalization and its like: all axes from one on are mixed."""
    dims = axes.dims(node.inputs[0])
    axis = node.attributes.get_int("axis", -1) % len(dims)
    axes.fix_all(node.inputs[1:], mixed(node))
    for ids in dims[axis:]:
        axes.fix(ids, mixed(node))
    return [*dims[:axis], *[None] * (len(dims) - axis)]


def reduce(axes: Axes, node: ir.Node) -> Dims:
    """Some axes are mixed."""
    dims = axes.dims(node.inputs[0])
    if node.op_type in ("ArgMax", "ArgMin"):
        chosen: list[int] | None = [node.attributes.get_int("axis", 0)]
    else:
        chosen = integers(node, 1, "axes")
    if not chosen:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            return dims
        chosen = list(range(len(dims)))
    gone = {k % len(dims) for k in chosen}
    for k in gone:
        axes.fix(dims[k], mixed(node))
    if node.attributes.get_int("keepdims", 1):
        return [None if k in gone else ids for k, ids in enumerate(dims)]
    return [ids for k, ids in enumerate(dims) if k not in gone]
