"""Fourier transforms of known length, as products with matrices of sines and cosines."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.lowering.decompose.write import sizes, writer
from graphopt.targets.lowering.qlinear import operand

Results = list[ir.Value | None] | None


def _dft(node: ir.Node) -> Results:
    """``y_k = sum_n x_n e^(-2 pi i n k / N)``, along one axis; the last axis holds real and imaginary part.

    With the axis last, ``[re im] -> [re im]`` is one product with a matrix [N * parts, K * 2].
    """
    x, given, inverse = node.inputs[0], operand(node, 1), node.attributes.get_int("inverse", 0)
    shape, one_sided = sizes(x), node.attributes.get_int("onesided", 0)
    axis_value = constant_array(operand(node, 2))
    if shape is None or x is None or x.dtype is None or (given is not None and constant_array(given) is None):
        return None
    if operand(node, 2) is not None and axis_value is None:
        return None
    default = -2 if node.version is None or node.version >= 20 else 1
    axis = int(axis_value.reshape(-1)[0]) if axis_value is not None else node.attributes.get_int("axis", default)
    axis, parts = axis % len(shape), shape[-1]
    own = shape[axis]
    if (inverse and one_sided) or axis == len(shape) - 1:
        return None
    length = own if given is None else int(constant_array(given).reshape(-1)[0])  # pyright: ignore
    bins = length // 2 + 1 if one_sided else length
    angle = 2 * np.pi * np.outer(np.arange(length), np.arange(bins)) / length * (1 if inverse else -1)
    unit = 1 / length if inverse else 1.0
    cos, sin = np.cos(angle) * unit, np.sin(angle) * unit
    rows = [np.stack([cos, sin], -1), np.stack([-sin, cos], -1)][:parts]  # [N, K, 2] for real, imaginary input
    matrix = np.stack(rows, 1).reshape(length * parts, bins * 2).astype(x.dtype.numpy())
    do = writer(node)
    if length < own:
        x = do("Slice", x, [0], [length], [axis])
    elif length > own:
        pads = [0] * (2 * len(shape))
        pads[len(shape) + axis] = length - own
        x = do("Pad", x, pads)
    outer = [k for k in range(len(shape) - 1) if k != axis]
    order = [*outer, axis, len(shape) - 1]
    x = do("Transpose", x, perm=order)
    lead = [shape[k] for k in outer]
    y = do("MatMul", do("Reshape", x, [*lead, length * parts]), matrix)
    y = do("Reshape", y, [*lead, bins, 2])
    return [do("Transpose", y, perm=[order.index(k) for k in range(len(shape))])]


REWRITES = {"DFT": _dft}
