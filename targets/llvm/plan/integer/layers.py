"""Quantized convolutions and dense layers: what they compute with, and what of the graph after them they take along."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.targets.llvm.kernels.contract import Contraction
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.epilogue import Activation
from graphopt.targets.llvm.kernels.formula import Formula
from graphopt.targets.llvm.kernels.requantise import Finish, Range, Residual
from graphopt.targets.llvm.plan.convs import oriented, window
from graphopt.targets.llvm.plan.epilogues import activation_of, tail
from graphopt.targets.llvm.plan.integer.region import Quantized, dequantized, last_first, only_reader, quantized
from graphopt.targets.llvm.plan.weights import Weight, bias_of, weight_of

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A region around one Conv, Gemm or MatMul, the first of `nodes`.

    `weight` is [CO, CI/group, KH, KW] on twins, `bias` int32 [CO], `m` what a step of the accumulators is worth:
    in steps of the result if `finish` clamps them, else absolutely. `residual`: the value that `finish` adds.
    """

    nodes: tuple[ir.Node, ...]
    x: ir.Value
    problem: Contraction
    weight: Array
    bias: Array
    m: Array
    finish: Finish
    residual: ir.Value | None

    @property
    def value(self) -> ir.Value:
        """The result."""
        return self.nodes[-1].outputs[0]


@dataclasses.dataclass(frozen=True)
class Behind:
    """What follows a product: its nodes, what is done, a step of the result if m is to be in those, and biases."""

    nodes: tuple[ir.Node, ...]
    finish: Finish
    residual: ir.Value | None
    step: np.float32 | None
    bias: Array | None


def find(nodes: Sequence[ir.Node], taken: set[ir.Node]) -> list[Layer]:
    """The layers among `nodes` without those `taken`; of two that could add each other's result the later one does."""
    return last_first(nodes, taken, _layer)


def _layer(node: ir.Node, position: dict[ir.Node, int], taken: set[ir.Node]) -> Layer | None:
    if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    x, w = dequantized(node.inputs[0]), weight_of(node.inputs[1])
    if x is None or w is None:
        return None
    shaped = _convolution(node, x, w) if node.op_type == "Conv" else _dense(node, x, w)
    if shaped is None:
        return None
    problem, weight = shaped
    after = behind(node, position, taken)
    scale = np.broadcast_to(x.scale * w.scale, (len(weight),))
    bias = bias_of(node.inputs[2] if len(node.inputs) > 2 else None, scale.astype(np.float64))
    if bias is None:
        return None
    if after.bias is not None:
        more = np.rint(after.bias / scale.astype(np.float64))
        if np.any(np.abs(more) >= 2**31):
            return None
        bias = (bias + more).astype(np.int64).astype(np.int32)
    m = scale if after.step is None else scale / after.step
    return Layer((node, *after.nodes), x.value, problem, weight, bias, m, after.finish, after.residual)


def _convolution(node: ir.Node, x: Quantized, w: Weight) -> tuple[Contraction, Array] | None:
    if w.values.ndim not in (3, 4) or (w.scale.size > 1 and w.axis != 0):
        return None
    c, source = window(node, w.values.shape[2:]), node.inputs[0]
    if c is None or source is None:
        return None
    return Contraction(c, x.zero), oriented(w.values, source)


def _dense(node: ir.Node, x: Quantized, w: Weight) -> tuple[Contraction, Array] | None:
    value, numbers = node.inputs[0], node.attributes
    turned = node.op_type == "Gemm" and numbers.get_int("transB", 0) == 1
    if (
        value is None
        or value.shape is None
        or len(value.shape) < 2
        or w.values.ndim != 2
        or node.outputs[0].shape is None
    ):
        return None
    if w.scale.size > 1 and w.axis != (0 if turned else 1):
        return None
    if numbers.get_int("transA", 0) or numbers.get_float("alpha", 1.0) != 1.0 or numbers.get_float("beta", 1.0) != 1.0:
        return None
    weight = w.values if turned else np.ascontiguousarray(w.values.T)
    co, k = weight.shape
    rows = tuple(d if isinstance(d, int) else f"d{i}" for i, d in enumerate(list(value.shape)[:-1]))
    return Contraction(Conv(1, 1, 1, k, co, (1, 1)), x.zero, rows), weight[:, :, None, None]


def behind(node: ir.Node, position: dict[ir.Node, int], taken: set[ir.Node]) -> Behind:
    """What follows the product `node` and is done before its result is stored."""
    found = tail(node, position, taken)
    nodes, formula = found.nodes[1:], found.epilogue
    q, result = _quantize(found.value, taken)
    if q is None or result is None:
        return Behind(nodes, Finish(None, formula=formula), found.residual, None, found.bias)
    nodes = (*nodes, q)
    bounded = Range(result.zero)
    if found.residual is not None:
        other, inside = dequantized(found.residual), bounds(formula.then, result)
        if other is not None and inside is not None and not formula.first:
            residual = Residual(other.zero, float(other.scale / result.scale))
            return Behind(nodes, Finish(inside, residual), other.value, result.scale, found.bias)
    else:
        inside = bounds(formula.first, result)
        if inside is not None:
            kept = Behind(nodes, Finish(inside), None, result.scale, found.bias)
            return _added(kept, inside, result, position[node], position, taken) or kept
    finish = Finish(bounded, formula=formula, step=float(result.scale))
    return Behind(nodes, finish, found.residual, None, found.bias)


def _quantize(value: ir.Value, taken: set[ir.Node]) -> tuple[ir.Node | None, Quantized | None]:
    """The QuantizeLinear that alone reads `value`, and what it yields."""
    q = only_reader(value)
    if q is None or q in taken or q.inputs[0] is not value:
        return None, None
    return q, quantized(q)


def _added(
    kept: Behind, inside: Range, inner: Quantized, at: int, position: dict[ir.Node, int], taken: set[ir.Node]
) -> Behind | None:
    """`kept` with the addition of another 8-bit value that its own 8-bit result is only made for."""
    back = only_reader(inner.value)
    own = None if back is None or back in taken else dequantized(back.outputs[0])
    add = None if back is None or own is None else only_reader(back.outputs[0])
    if back is None or own is None or add is None or add in taken or add.domain != "":
        return None
    if add.op_type not in ("Add", "Sum") or len(add.inputs) != 2:
        return None
    value = add.inputs[1] if add.inputs[0] is back.outputs[0] else add.inputs[0]
    other = dequantized(value)
    if value is None or other is None or value.shape is None or value.shape != back.outputs[0].shape:
        return None
    producer = other.value.producer()
    if other.value is inner.value or add.outputs[0].shape != value.shape:
        return None
    if producer is not None and position.get(producer, -1) > at:
        return None
    nodes, end, activations = [back, add], add.outputs[0], list[Activation | Formula]()
    while (found := activation_of(end)) is not None and not taken.intersection(found[1]):
        activations.append(found[0])
        nodes.extend(found[1])
        end = found[1][-1].outputs[0]
    q, result = _quantize(end, taken)
    limits = None if result is None else bounds(tuple(activations), result)
    if q is None or result is None or limits is None:
        return None
    worth = float(own.scale / result.scale)
    residual = Residual(other.zero, float(other.scale / result.scale), (inside, worth))
    return Behind((*kept.nodes, *nodes, q), Finish(limits, residual), other.value, kept.step, kept.bias)


def bounds(activations: Sequence[Activation | Formula], result: Quantized) -> Range | None:
    """The range that Relu and Clip leave of 8 bits; None if there is any other activation."""
    low, high = 0, 255
    for activation in activations:
        if not isinstance(activation, Activation) or activation.name not in ("relu", "clip"):
            return None
        a, b = (0.0, np.inf) if activation.name == "relu" else (activation.a, activation.b)
        with np.errstate(over="ignore"):
            least, most = (np.rint(np.float32(v) / result.scale) + result.zero for v in (a, b))
        low, high = int(max(low, min(least, 255))), int(min(high, max(most, 0)))
    return Range(result.zero, min(low, high), high)
