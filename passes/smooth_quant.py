"""SmoothQuant: outliers move from activations into weights."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import Context, Pass, Preserves, Report, tolerance
from graphopt.data import Batches
from graphopt.graph import add_constant, constant_array, fresh_name, remove_unused, used_once
from graphopt.oracle import Session
from graphopt.passes.batch_norm.reading import is_onnx
from graphopt.passes.weights import find_weight, input_axis
from graphopt.progress import track

Array = np.ndarray[Any, Any]

LEAST = 1e-5
"""Factors stay above this and below its inverse."""


@dataclasses.dataclass(frozen=True)
class _Site:
    """`value`, with channels along its last axis, and the MatMul and Gemm nodes that multiply it by constants.
    `absorber`: a LayerNormalization, or the Add or Mul of a constant, that can take the division; else a Mul does.
    """

    value: ir.Value
    readers: list[ir.Node]
    absorber: ir.Node | None


@dataclass(frozen=True)
class SmoothQuant(Pass):
    """Divides the channels that matrix products read by factors that their weights take over.

    alpha: how much of the difficulty moves from the activations into the weights: at 1 all channels of the activations
        have the same peak, at 0 all channels of the weights.

    ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` per channel j, with X from calibration data and W_j over all
    products that read it; ``X / s`` and ``s W`` have the same product, and outlier channels no longer spoil one scale
    per tensor (Xiao et al. 2022, SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models, equation 4). The division goes into the LayerNormalization before (or the Mul and Add it is written out
    as) where those products alone read it; where a residual reads it too, a Mul stands before the products. Applied
    to what a LayerNormalization yields. Runs before insert-qdq.
    """

    name: ClassVar[str] = "smooth-quant"
    preserves: ClassVar[Preserves] = tolerance(rtol=1e-4, atol=1e-6)

    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Facts: `outliers`, by value, the largest over the median channel's peak before and after.

        Raises:
            DataError: no calibration data.
        """
        report = Report()
        sites = _find(model.graph, report)
        peaks = _peaks(model, [site.value for site in sites], context.needs_calibration(self.name)) if sites else {}
        for site in sites:
            name, peak = str(site.value.name), peaks[str(site.value.name)]
            if not np.isfinite(peak).all():
                report.skip(name, "it is not finite on the calibration data")
                continue
            s = _factors(peak, [_by_channel(node) for node in site.readers], self.alpha)
            for node in site.readers:
                _multiply(model.graph, node, s)
            how = _absorb(model.graph, site, s)
            report.facts.setdefault("outliers", {})[name] = [_outlier(peak), _outlier(peak / s)]
            report.change(site.readers[0].name, f"{len(site.readers)} products of {name!r} smoothed, {how}")
        remove_unused(model)
        return report


def _find(graph: ir.Graph, report: Report) -> list[_Site]:
    sites: list[_Site] = []
    for node in graph:
        if not node.outputs or not _normalises(node):
            continue
        value = node.outputs[0]
        readers = [reader for reader, index in value.uses() if index == 0 and _multiplies(reader)]
        if not readers:
            continue
        if any(reader.graph is not graph for reader in readers):
            report.skip(node.name, f"{value.name!r} is read in a subgraph")
            continue
        alone = len(readers) == len(value.uses()) and not value.is_graph_output()
        sites.append(_Site(value, readers, node if alone and _absorbs(node) else None))
    return sites


def _normalises(node: ir.Node) -> bool:
    """A LayerNormalization along the last axis, or the Add of a vector to the product with one that ends it."""
    if is_onnx(node, "LayerNormalization"):
        return node.attributes.get_int("axis", -1) == -1 and constant_array(node.inputs[1]) is not None
    if not is_onnx(node, "Add") or _vector(node) is None:
        return False
    index = _vector(node)
    scaled = node.inputs[1 - index].producer() if index is not None and node.inputs[1 - index] is not None else None  # pyright: ignore[reportOptionalMemberAccess]
    if scaled is None or not is_onnx(scaled, "Mul"):
        return False
    gamma = _vector(scaled)
    divided = scaled.inputs[1 - gamma].producer() if gamma is not None else None  # pyright: ignore[reportOptionalMemberAccess]
    return divided is not None and is_onnx(divided, "Div", "Mul")


def _vector(node: ir.Node) -> int | None:
    """Which operand is a constant vector."""
    for index, value in enumerate(node.inputs):
        array = constant_array(value)
        if array is not None and array.ndim == 1 and array.size > 1:
            return index
    return None


def _absorbs(node: ir.Node) -> bool:
    if is_onnx(node, "LayerNormalization"):
        return len(node.inputs) < 3 or node.inputs[2] is None or constant_array(node.inputs[2]) is not None
    index = _vector(node)
    scaled = node.inputs[1 - index] if index is not None else None
    return scaled is not None and used_once(scaled)


def _multiplies(node: ir.Node) -> bool:
    if not is_onnx(node, "MatMul", "Gemm") or node.attributes.get_int("transA", 0):
        return False
    weight = find_weight(node)
    array = None if weight is None else constant_array(weight.root)
    plain = weight is not None and weight.index == 1 and weight.root is node.inputs[1]
    return plain and array is not None and array.ndim == 2 and array.dtype == np.float32


def _by_channel(node: ir.Node) -> Array:
    """The weight's largest magnitude for each channel that it reads."""
    weight, array = find_weight(node), constant_array(node.inputs[1])
    assert weight is not None
    assert array is not None
    return np.abs(array.astype(np.float64)).max(axis=1 - (input_axis(weight) or 0))


def _multiply(graph: ir.Graph, node: ir.Node, s: Array) -> None:
    weight, array = find_weight(node), constant_array(node.inputs[1])
    assert weight is not None
    assert array is not None
    scaled = array * (s[:, None] if input_axis(weight) == 0 else s)
    node.replace_input_with(1, add_constant(graph, f"{weight.root.name}_smoothed", scaled.astype(np.float32)))


def _factors(peak: Array, weights: list[Array], alpha: float) -> Array:
    w = np.max(weights, axis=0)
    alive = (peak > 0) & (w > 0)
    s = np.where(alive, peak, 1.0) ** alpha / np.where(alive, w, 1.0) ** (1 - alpha)
    return np.clip(np.where(alive, s, 1.0), LEAST, 1 / LEAST)


def _absorb(graph: ir.Graph, site: _Site, s: Array) -> str:
    node = site.absorber
    if node is None:
        inverse = add_constant(graph, f"{site.value.name}_smoothing", (1 / s).astype(np.float32))
        product = ir.node("Mul", [site.value, inverse])
        product.name = product.outputs[0].name = fresh_name(graph, f"{site.value.name}_smoothed")
        product.outputs[0].type, product.outputs[0].shape = site.value.type, site.value.shape
        graph.insert_before(site.readers[0], product)
        for reader in site.readers:
            reader.replace_input_with(0, product.outputs[0])
        return "by a Mul of its own: other nodes read it too"
    if is_onnx(node, "LayerNormalization"):
        _divide(graph, node, 1, s)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            _divide(graph, node, 2, s)
    else:
        index = _vector(node)
        assert index is not None
        scaled = node.inputs[1 - index]
        product = None if scaled is None else scaled.producer()
        assert product is not None
        _divide(graph, node, index, s)
        _divide(graph, product, _vector(product) or 0, s)
    return f"by {node.name!r}"


def _divide(graph: ir.Graph, node: ir.Node, index: int, s: Array) -> None:
    value = node.inputs[index]
    array = constant_array(value)
    assert value is not None
    assert array is not None
    node.replace_input_with(index, add_constant(graph, f"{value.name}_smoothed", (array / s).astype(array.dtype)))


def _peaks(model: ir.Model, values: list[ir.Value], batches: Batches) -> dict[str, Array]:
    names = [str(value.name) for value in values]
    session, peaks = Session(model, names), dict[str, Array]()
    for feeds in track(batches.pieces(8), "Watching channels"):
        for name, array in session.run(feeds).items():
            peak = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0).astype(np.float64)
            peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
    return peaks


def _outlier(peak: Array) -> float:
    middle = float(np.median(peak))
    return float(peak.max() / middle) if middle > 0 else 1.0
