"""Resize as one product with a matrix for each axis: exact in every mode, for those that TVM gets wrong or lacks."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array, infer_shapes
from graphopt.targets.lowering.decompose.write import sizes, writer
from graphopt.targets.lowering.nodes import take_place
from graphopt.targets.lowering.qlinear import operand

reference: Any = importlib.import_module("onnx.reference.ops.op_resize")
MAX_ELEMENTS = 1 << 24
"""Of a matrix; a larger Resize is refused."""
KNOWN = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")


def write_out_resizes(model: ir.Model) -> None:
    """Rewrite every Resize of the main graph that `delicate` names and whose sizes are known, in place."""
    changed = False
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "Resize" and delicate(node):
            result = _by_matrices(node)
            if result is not None:
                take_place(node, result)
                model.graph.remove(node, safe=True)
                changed = True
    if changed:
        infer_shapes(model)


def delicate(node: ir.Node) -> str | None:
    """Why TVM's Resize would not do: it computes positions from the two sizes alone."""
    into, scales = sizes(node.outputs[0]), operand(node, 2)
    shape = sizes(node.inputs[0])
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    for name, plain in (("antialias", 0), ("exclude_outside", 0)):
        if node.attributes.get_int(name, plain) != plain:
            return name
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch" or "axes" in node.attributes:
        return "some axes or their ratio kept"
    if mode not in KNOWN:
        return f"coordinate_transformation_mode={mode}"
    factors = constant_array(scales) if mode != "align_corners" else None  # onnxruntime too goes by the sizes there
    if factors is not None and factors.size and shape is not None and into is not None:
        exact = [np.isclose(size * f, out, rtol=1e-6) for size, f, out in zip(shape, factors, into, strict=False)]
        return None if all(exact) else "scales that give no whole sizes"
    return None


def _by_matrices(node: ir.Node) -> ir.Value | None:
    """``Y[.., o, ..] = sum_i M[o, i] X[.., i, ..]`` along each axis whose size changes."""
    x, y = node.inputs[0], node.outputs[0]
    shape, into = sizes(x), sizes(y)
    if x is None or shape is None or into is None or x.dtype is None or not x.dtype.is_floating_point():
        return None
    rank = len(shape)
    axes = [int(a) % rank for a in node.attributes.get_ints("axes", list(range(rank)))]
    scales, roi = _factors(node, shape, into, axes), _array(node, 1)
    if scales is None:
        return None
    do, dtype = writer(node), x.dtype.numpy()
    outside: list[tuple[int, np.ndarray[Any, Any]]] = []
    for k, axis in enumerate(axes):
        if shape[axis] == into[axis] and scales[k] == 1 and roi is None:
            continue
        if shape[axis] * into[axis] > MAX_ELEMENTS:
            return None
        window = None if roi is None or not roi.size else [float(roi[k]), float(roi[k + len(axes)])]
        matrix, beyond = _matrix(node, shape[axis], into[axis], float(scales[k]), window)
        order = [a for a in range(rank) if a != axis] + [axis]
        x = do("MatMul", do("Transpose", x, perm=order), np.ascontiguousarray(matrix.T.astype(dtype)))
        x = do("Transpose", x, perm=[order.index(a) for a in range(rank)])
        if beyond is not None and beyond.any():
            outside.append((axis, beyond))
    for axis, beyond in outside:
        mask = beyond.reshape([-1 if a == axis else 1 for a in range(rank)])
        x = do("Where", mask, np.array(node.attributes.get_float("extrapolation_value", 0.0), dtype), x)
    return x


def _array(node: ir.Node, index: int) -> np.ndarray[Any, Any] | None:
    array = constant_array(operand(node, index))
    return array if array is not None and array.size else None


def _factors(node: ir.Node, shape: list[int], into: list[int], axes: list[int]) -> list[float] | None:
    scales = _array(node, 2)
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "align_corners":
        return [into[axis] / shape[axis] for axis in axes]
    if scales is not None:
        return [float(f) for f in scales]
    if _array(node, 3) is None:
        return None
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    wanted = [int(size) for size in _array(node, 3)]  # pyright: ignore[reportOptionalIterable]
    factors = [size / shape[axis] for size, axis in zip(wanted, axes, strict=True)]
    if policy == "stretch":
        return [into[axis] / shape[axis] for axis in axes]
    return [min(factors) if policy == "not_larger" else max(factors)] * len(axes)


def _matrix(
    node: ir.Node, size: int, out: int, scale: float, window: list[float] | None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """What the unit vectors come to, as ONNX's reference has it, and which results lie outside the window."""
    mode = str(node.attributes.get_string("mode", "nearest"))
    antialias = bool(node.attributes.get_int("antialias", 0))
    a = node.attributes.get_float("cubic_coeff_a", -0.75)
    transformation = str(node.attributes.get_string("coordinate_transformation_mode", "half_pixel"))
    if mode == "nearest":
        rounding = str(node.attributes.get_string("nearest_mode", "round_prefer_floor"))

        def coefficients(ratio: float, _scale: float) -> Any:
            return reference._nearest_coeffs(ratio, mode=rounding)

    elif mode == "linear":
        coefficients = reference._linear_coeffs_antialias if antialias else reference._linear_coeffs
    else:
        coefficients = partial(reference._cubic_coeffs_antialias if antialias else reference._cubic_coeffs, A=a)
    matrix = reference._interpolate_1d_along_axis(
        np.eye(size), 0, scale, out, coefficients, roi=window, extrapolation_value=0.0,
        coordinate_transformation_mode=transformation,
        exclude_outside=bool(node.attributes.get_int("exclude_outside", 0)),
    )  # fmt: skip
    _, beyond = reference._compute_x_ori(
        transformation, np.arange(out, dtype=np.float64), scale, size, scale * size, out, window
    )
    return matrix, beyond
