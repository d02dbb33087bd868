"""Operators that move indices about."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.passes.channels.axes import Axes, Dims, Opaque, size, sizes
from graphopt.passes.channels.operands import integers, said
from graphopt.passes.channels.reshape import reshaped

_OF_SHAPES = ("Cast", "Gather", "Slice", "Squeeze", "Unsqueeze")


def transpose(axes: Axes, node: ir.Node) -> Dims:
    """Axes change places."""
    dims = axes.dims(node.inputs[0])
    order = node.attributes.get_ints("perm", tuple(reversed(range(len(dims)))))
    return [dims[k] for k in order]


def reshape(axes: Axes, node: ir.Node) -> Dims:
    """Reshape, Flatten, Squeeze and Unsqueeze: see `reshaped`."""
    dims = axes.dims(node.inputs[0])
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    if node.op_type == "Reshape" and constant_array(node.inputs[1]) is None and not restatable(node):
        raise Opaque("its shape is computed at run time")
    return reshaped(axes, dims, before, after, f"{said(node)} mixes axes")


def restatable(node: ir.Node) -> bool:
    """Is the shape that this Reshape computes at run time known but for one axis, so that a constant can say it?"""
    shape = node.outputs[0].shape
    return shape is not None and sum(not isinstance(dim, int) for dim in shape) <= 1


def concat(axes: Axes, node: ir.Node) -> Dims:
    """Indices one behind the other; along the other axes they are alike."""
    operands = [axes.dims(value) for value in node.inputs]
    axis = node.attributes.get_int("axis", 0) % len(operands[0])
    found: Dims = list(operands[0])
    for k in range(len(found)):
        for other in operands[1:] if k != axis else ():
            found[k] = axes.tie(found[k], other[k], said(node))
    if all(dims[axis] is None for dims in operands):
        return found
    joined: list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = []
    for value, dims in zip(node.inputs, operands, strict=True):
        length, ids = size(value, axis), dims[axis]
        if ids is None and length is None:
            for other in operands:
                axes.fix(other[axis], f"{said(node)} joins them to an axis of unknown length")
            found[axis] = None
            return found
        joined.append(_fixed(axes, length or 0, node) if ids is None else ids)
    found[axis] = np.concatenate(joined)
    return found


def _fixed(axes: Axes, length: int, node: ir.Node) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    ids = axes.fresh(length)
    assert ids is not None
    axes.fix(ids, f"it is what {said(node)} joins to what is fixed")
    return ids


def split(axes: Axes, node: ir.Node) -> Dims:
    """Runs of indices."""
    dims = axes.dims(node.inputs[0])
    axis = node.attributes.get_int("axis", 0) % len(dims)
    integers(node, 1, "split")
    ids, start, parts = dims[axis], 0, list[Dims]()
    for value in node.outputs:
        length = size(value, axis)
        if ids is not None and length is None:
            raise Opaque("the sizes of its results are not known")
        part = list(dims)
        part[axis] = None if ids is None else ids[start : start + (length or 0)]
        start += length or 0
        parts.append(part)
    axes.of.update(zip(node.outputs, parts, strict=True))
    return parts[0]


def slices(node: ir.Node, rank: int, lengths: list[int | str]) -> dict[int, slice]:
    """The slice that a Slice takes of each axis it names.

    Raises:
        Opaque: it is computed at run time.
    """
    starts, ends = integers(node, 1), integers(node, 2)
    assert starts is not None
    assert ends is not None
    chosen = integers(node, 3) or list(range(len(starts)))
    steps = integers(node, 4) or [1] * len(starts)
    found: dict[int, slice] = {}
    for axis, start, end, step in zip(chosen, starts, ends, steps, strict=True):
        length = lengths[axis]
        if isinstance(length, int):
            end = None if step < 0 and end < -length else end
        found[axis % rank] = slice(start, end, step)
    return found


def slice_(axes: Axes, node: ir.Node) -> Dims:
    """A run of indices along some axes."""
    dims = axes.dims(node.inputs[0])
    if all(ids is None for ids in dims):
        return dims
    for axis, part in slices(node, len(dims), sizes(node.inputs[0])).items():
        ids = dims[axis]
        if ids is None:
            continue
        if part.step != 1:
            axes.fix(ids, f"{said(node)} takes every {part.step}th")
            dims[axis] = None
        else:
            dims[axis] = ids[part] if len(ids[part]) else None
    return dims


def gather(axes: Axes, node: ir.Node) -> Dims:
    """Chosen indices; what is looked up by indices known at run time alone stays."""
    dims = axes.dims(node.inputs[0])
    axis = node.attributes.get_int("axis", 0) % len(dims)
    ids, chosen = dims[axis], constant_array(node.inputs[1])
    if chosen is not None and chosen.ndim == 1 and ids is not None:
        return [*dims[:axis], ids[chosen], *dims[axis + 1 :]]
    axes.fix(ids, f"{said(node)} looks them up")
    return [*dims[:axis], *[None] * len(sizes(node.inputs[1])), *dims[axis + 1 :]]


def shape(axes: Axes, node: ir.Node) -> Dims:
    """A Shape that only Reshapes of known result read says nothing that matters; `cut` states these anew."""
    pending, seen = list(node.outputs), set[ir.Value]()
    while pending:
        value = pending.pop()
        seen.add(value)
        for user, index in value.uses():
            if user.op_type == "Concat" or (user.op_type in _OF_SHAPES and index != 1):
                pending.extend(v for v in user.outputs if v not in seen)
            elif not (user.op_type == "Reshape" and index == 1 and restatable(user)):
                raise Opaque(f"{said(user)} computes with the sizes")
        if value.is_graph_output():
            raise Opaque("its result is a graph output")
    return [None]
