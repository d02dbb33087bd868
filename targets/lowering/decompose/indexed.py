"""Operators whose operands are indices or fill values known only at run time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.lowering.decompose.write import cast, sizes, writer
from graphopt.targets.lowering.qlinear import operand

D = ir.DataType
Results = list[ir.Value | None] | None


def _one_hot(node: ir.Node) -> Results:
    """``where(index == 0 .. depth - 1, on, off)``; negative indices count from the end, others give all off."""
    indices, depth, values = node.inputs
    count, shape = constant_array(depth), None if indices is None else indices.shape
    if count is None or shape is None or indices is None:
        return None
    if constant_array(values) is not None and indices.dtype == D.INT64:
        return None  # the importer's own
    do, depth_ = writer(node), int(count.reshape(-1)[0])
    axis = node.attributes.get_int("axis", -1) % (len(shape) + 1)
    index = cast(do, indices, D.INT64)
    zero, size = np.array(0, np.int64), np.array(depth_, np.int64)
    index = do("Where", do("Less", index, zero), do("Add", index, size), index)
    steps = np.arange(depth_, dtype=np.int64).reshape([-1 if k == axis else 1 for k in range(len(shape) + 1)])
    hit = do("Equal", do("Unsqueeze", index, [axis]), steps)
    off, on = (do("Gather", values, np.array(k, np.int64), axis=0) for k in (0, 1))
    return [do("Where", hit, on, off)]


def _pad(node: ir.Node) -> Results:
    """Constant padding with a value known only at run time: padded with zeros, then filled where nothing was."""
    x, fill = node.inputs[0], operand(node, 2)
    shape = sizes(x)
    pads, axes = constant_array(node.inputs[1]), operand(node, 3)
    mode = node.attributes.get_string("mode", "constant")
    if fill is None or constant_array(fill) is not None or x is None or shape is None or pads is None:
        return None
    if mode != "constant" or (axes is not None and constant_array(axes) is None):
        return None
    places = range(len(shape)) if axes is None else [int(a) % len(shape) for a in constant_array(axes)]  # pyright: ignore
    before, after = [0] * len(shape), [0] * len(shape)
    for k, axis in enumerate(places):
        before[axis], after[axis] = int(pads[k]), int(pads[k + len(pads) // 2])
    if min(before) < 0 or min(after) < 0:
        return None
    do = writer(node)
    inside = np.pad(np.ones(shape, bool), list(zip(before, after, strict=True)))
    return [do("Where", inside, do("Pad", x, [*before, *after]), do("Reshape", fill, [1]))]


def _eye_like(node: ir.Node) -> Results:
    """Ones along a diagonal of a matrix of known shape: a constant."""
    shape, dtype = sizes(node.inputs[0]), node.outputs[0].dtype
    if shape is None or dtype is None:
        return None
    eye = np.eye(*shape, k=node.attributes.get_int("k", 0)).astype(dtype.numpy())
    return [writer(node)("Identity", eye)]


REWRITES = {"EyeLike": _eye_like, "OneHot": _one_hot, "Pad": _pad}
