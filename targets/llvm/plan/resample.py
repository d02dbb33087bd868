"""Resize and Pad of positions onto the kernel that looks positions up: the tables."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.llvm.kernels import resample
from graphopt.targets.llvm.kernels.resample import Array, Resample
from graphopt.targets.llvm.plan.kernels import ELEMENT, Kernels, call
from graphopt.targets.llvm.plan.layout import Image, Twins, image, is_turned

Table = tuple[Array, Array]
"""Positions and weights, [out, taps] each."""
TRANSFORMS = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric")
TAPS = {"nearest": 1, "linear": 2, "cubic": 4}


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute a Resize or Pad that leaves batch and channels alone; says whether it did."""
    x, y = image(node.inputs[0]), image(node.outputs[0])
    source, result = node.inputs[0], node.outputs[0]
    if source is None or x is None or y is None or source.dtype != ir.DataType.FLOAT or (x.n, x.c) != (y.n, y.c):
        return False
    if source.shape is None or len(source.shape) > 4 or is_turned(source) != is_turned(result):
        return False
    fill: float | None = None
    if node.op_type == "Resize":
        tables = _resized(node, source, result)
    elif twins.known(source):
        tables, fill = _padded(node, source), _fill(node)
    else:
        return False
    if tables is None:
        return False
    whole = (np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32))
    tables = [whole, *tables] if len(tables) == 1 else tables
    _call(node, tables[::-1] if is_turned(source) else tables, fill, x, y, kernels, twins)
    return True


def _call(
    node: ir.Node, tables: list[Table], fill: float | None, x: Image, y: Image, kernels: Kernels, twins: Twins
) -> None:
    taps = (tables[0][0].shape[1], tables[1][0].shape[1])
    p = Resample(x.batch, (x.h, x.w), x.c, (y.h, y.w), taps, fill)
    parallel = kernels.threads((p.n, y.h, y.w), p.c * math.prod(taps) * ELEMENT)
    symbol = kernels.symbol(p, "resample", lambda s: resample.make(p, kernels.isa, parallel, s))
    arrays = [positions for positions, _ in tables] + ([w for _, w in tables] if taps != (1, 1) else [])
    constants = [
        kernels.constant(("table", a.tobytes(), a.shape, str(a.dtype)), f"{node.name}_table", lambda a=a: a)
        for a in arrays
    ]
    source = node.inputs[0]
    assert source is not None
    called = call(symbol, [twins.last(source), *constants], y.last, node)
    twins.insert(called)
    twins.set(node.outputs[0], called.outputs[0])


def _resized(node: ir.Node, source: ir.Value, result: ir.Value) -> list[Table] | None:
    """The tables of a Resize along the axes after the channels."""
    mode = node.attributes.get_string("mode", "nearest")
    transform = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode not in TAPS or transform not in TRANSFORMS or node.attributes.get_int("antialias", 0):
        return None
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch" or len(node.inputs) < 2:
        return None
    assert source.shape is not None
    assert result.shape is not None
    rank = len(source.shape)
    given = node.inputs[2] if len(node.inputs) > 2 else None
    scales = constant_array(given)
    if given is not None and scales is None:
        return None
    axes = list(node.attributes.get_ints("axes", list(range(rank))))
    tables: list[Table] = []
    for axis in range(2, rank):
        before, after = source.shape[axis], result.shape[axis]
        assert isinstance(before, int)
        assert isinstance(after, int)
        scale = np.float32(after / before)
        if scales is not None and scales.size and (axis in axes or axis - rank in axes):
            scale = np.float32(scales.reshape(-1)[axes.index(axis if axis in axes else axis - rank)])
        places = _places(transform, before, after, scale)
        tables.append(_taps(node, mode, places, before))
    return tables


def _places(transform: str, before: int, after: int, scale: np.float32) -> Array:
    """Where in the input each output position lies, in float32 as onnxruntime computes it."""
    x, one, half = np.arange(after, dtype=np.float32), np.float32(1), np.float32(0.5)
    if transform == "asymmetric":
        return x / scale
    if transform == "align_corners":
        return x * np.float32(before - 1) / np.float32(after - 1) if after > 1 else np.zeros(1, np.float32)
    centred = (x + half) / scale - half
    if transform == "pytorch_half_pixel" and after == 1:
        return np.zeros(1, np.float32)
    if transform == "half_pixel_symmetric":
        adjustment = np.float32(after) / (scale * np.float32(before))
        return np.float32(before) / 2 * (one - adjustment) + centred
    return centred


def _taps(node: ir.Node, mode: str, places: Array, size: int) -> Table:
    if mode == "nearest":
        half = np.float32(0.5)
        match node.attributes.get_string("nearest_mode", "round_prefer_floor"):
            case "floor":
                rounded = np.floor(places)
            case "ceil":
                rounded = np.ceil(places)
            case "round_prefer_ceil":
                rounded = np.floor(places + half)
            case _:
                rounded = np.ceil(places - half)
        return np.clip(rounded, 0, size - 1).astype(np.int32)[:, None], np.ones((len(places), 1), np.float32)
    if mode == "linear":
        places = np.clip(places, 0, size - 1)
        low = places.astype(np.int32)
        rest = places - low.astype(np.float32)
        return np.stack([low, np.minimum(low + 1, size - 1)], 1), np.stack([1 - rest, rest], 1).astype(np.float32)
    low = np.floor(places)
    rest = (places - low).astype(np.float64)
    a = node.attributes.get_float("cubic_coeff_a", -0.75)
    near = [((a + 2) * t - (a + 3)) * t * t + 1 for t in (rest, 1 - rest)]
    far = [((a * t - 5 * a) * t + 8 * a) * t - 4 * a for t in (rest + 1, 2 - rest)]
    weights = np.stack([far[0], near[0], near[1], far[1]], 1)
    positions = low.astype(np.int32)[:, None] + np.arange(-1, 3, dtype=np.int32)
    if node.attributes.get_int("exclude_outside", 0):
        weights = np.where((positions >= 0) & (positions < size), weights, 0)
        weights /= weights.sum(1, keepdims=True)
    return np.clip(positions, 0, size - 1).astype(np.int32), weights.astype(np.float32)


def _fill(node: ir.Node) -> float | None:
    """The constant around the value; None where what is around it depends on the value."""
    if node.attributes.get_string("mode", "constant") != "constant":
        return None
    value = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    return 0.0 if value is None else float(value.reshape(-1)[0])


def _padded(node: ir.Node, source: ir.Value) -> list[Table] | None:
    """The tables of a Pad along the axes after the channels; -1 outside, where that is a constant."""
    pads = constant_array(node.inputs[1])
    value = node.inputs[2] if len(node.inputs) > 2 else None
    given = node.inputs[3] if len(node.inputs) > 3 else None
    if pads is None or source.shape is None or (value is not None and constant_array(value) is None):
        return None
    rank, mode = len(source.shape), node.attributes.get_string("mode", "constant")
    axes = list(range(rank)) if given is None else constant_array(given)
    if axes is None or mode not in ("constant", "edge", "reflect", "wrap"):
        return None
    low, high = np.zeros(rank, int), np.zeros(rank, int)
    flat = pads.reshape(2, -1)
    for index, axis in enumerate(axes):
        low[int(axis)], high[int(axis)] = flat[0, index], flat[1, index]
    if low[:2].any() or high[:2].any():
        return None
    tables: list[Table] = []
    for axis in range(2, rank):
        size = source.shape[axis]
        assert isinstance(size, int)
        at = np.arange(-low[axis], size + high[axis])
        if mode == "constant":
            at = np.where((at >= 0) & (at < size), at, -1)
        elif mode == "edge":
            at = np.clip(at, 0, size - 1)
        elif mode == "wrap":
            at = at % size
        else:
            at = np.abs((at + size - 1) % (2 * size - 2) - (size - 1)) if size > 1 else np.zeros_like(at)
        tables.append((at.astype(np.int32)[:, None], np.ones((len(at), 1), np.float32)))
    return tables
