"""Layer normalization as exporters write it out, found and written as one operator.

``(x - mean x) / sqrt(var x + epsilon) [* scale] [+ bias]`` along one axis. Means are ReduceMean, or ReduceSum over the
number of elements; the variance is ``mean (x - mean x)^2`` or ``mean x^2 - (mean x)^2``, perhaps at least 0; statistics
may lose their axis and get it back by a Reshape. The kernels compute the first form of the variance, which doesn't lose
digits where the mean is large.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import add_constant, constant_array, derive, fresh_name, used_once
from graphopt.targets.llvm.kernels import layer_norm
from graphopt.targets.llvm.plan.formulas import scalar
from graphopt.targets.llvm.plan.kernels import ELEMENT, Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, replace

OPERATOR = ("graphopt", "LayerNormAcross")
"""Along an axis that isn't the last."""


class Along(NamedTuple):
    """A value and one of its axes."""

    x: ir.Value
    axis: int

    @property
    def size(self) -> int:
        """Elements along the axis; 0 where that isn't known."""
        size = self.x.shape[self.axis] if self.x.shape is not None else 0
        return size if isinstance(size, int) else 0

    @property
    def kept(self) -> list[int | ir.SymbolicDim]:
        """The shape of a statistic of it that keeps the axis."""
        dims = list(self.x.shape or ())
        return [*dims[: self.axis], 1, *dims[self.axis + 1 :]]


def find_norms(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place."""
    for node in list(model.graph):
        found = _normalised(node) if node.domain == "" and len(node.inputs) == 2 else None
        if found is not None and _is_covered(found[0]):
            _rewrite(node, *found, model.graph)
    common.RemoveUnusedNodesPass()(model)


def _is_covered(along: Along) -> bool:
    """Whether kernels know all the sizes that they unroll over."""
    inner = list(along.x.shape or ())[along.axis + 1 :]
    return along.x.dtype == ir.DataType.FLOAT and along.size > 0 and all(isinstance(d, int) for d in inner)


def _normalised(node: ir.Node) -> tuple[Along, float, ir.Value | None] | None:
    """What `node` normalises, with which epsilon, and a factor if there is one: the division, or the product."""
    if node.op_type == "Div":
        found = _root(node.inputs[1])
        return None if found is None or _centred(node.inputs[0]) != found[0] else (*found, None)
    if node.op_type != "Mul":
        return None
    for centred, other in (node.inputs, node.inputs[::-1]):
        along = _centred(centred)
        if along is None or other is None:
            continue
        producer, scale = other.producer(), None
        if producer is not None and _is(producer, "Mul"):
            others = [v for v in producer.inputs if constant_array(v) is not None]
            scale = others[0] if others else None
            other = next((v for v in producer.inputs if v is not scale), None)
        found = _root(_inverted(other))
        if found is not None and found[0] == along and (scale is None or _along(scale, along) is not None):
            return *found, scale
    return None


def _inverted(value: ir.Value | None) -> ir.Value | None:
    """x where `value` is 1 / x."""
    node = None if value is None else value.producer()
    if node is not None and _is(node, "Div") and scalar(node.inputs[0]) == 1.0:
        return node.inputs[1]
    return _input(value, "Reciprocal")


def _root(value: ir.Value | None) -> tuple[Along, float] | None:
    """(x, epsilon) where `value` is ``sqrt(var x + epsilon)``, its axis kept."""
    under = _input(value, "Sqrt")
    add = None if under is None else under.producer()
    if value is None or value.shape is None or add is None or not _is(add, "Add"):
        return None
    for variance, constant in (add.inputs, add.inputs[::-1]):
        epsilon, along = scalar(constant), _variance(variance)
        if epsilon is not None and along is not None and list(value.shape) == along.kept:
            return along, epsilon
    return None


def _variance(value: ir.Value | None) -> Along | None:
    value = _reshaped(value)
    node = None if value is None else value.producer()
    if node is not None and _is(node, "Max") and len(node.inputs) == 2 and 0.0 in map(scalar, node.inputs):
        value = _reshaped(next(v for v in node.inputs if scalar(v) != 0.0))
        node = None if value is None else value.producer()
    if value is None or node is None:
        return None
    if _is(node, "Sub") and all(v is not None and v.shape == value.shape for v in node.inputs):
        squares, square = _mean(node.inputs[0]), _mean(_squared(node.inputs[1]))
        x = None if squares is None else _squared(squares.x)
        return square if square is not None and squares is not None and square == (x, squares.axis) else None
    squares = _mean(value)
    along = None if squares is None else _centred(_squared(squares.x))
    return along if along is not None and squares is not None and along.axis == squares.axis else None


def _centred(value: ir.Value | None) -> Along | None:
    """x and the axis where `value` is x less its mean."""
    node = None if value is None else value.producer()
    if node is None or not _is(node, "Sub") or node.inputs[1] is None or node.inputs[1].shape is None:
        return None
    along = _mean(node.inputs[1])
    fits = along is not None and along.x is node.inputs[0] and list(node.inputs[1].shape) == along.kept
    return along if fits else None


def _mean(value: ir.Value | None) -> Along | None:
    """Of what along which axis `value` is the mean; the axis may be gone."""
    value = _reshaped(value)
    node = None if value is None else value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type == "ReduceMean":
        return _reduced(node)
    if node.op_type not in ("Mul", "Div"):
        return None
    for sum_, constant in (node.inputs, node.inputs[::-1]):
        producer, number = None if sum_ is None else sum_.producer(), scalar(constant)
        along = _reduced(producer) if producer is not None and _is(producer, "ReduceSum") else None
        if along is not None and number and sum_ is not None and sum_.shape == node.outputs[0].shape:
            size = number if node.op_type == "Div" else 1 / number
            first = node.op_type == "Mul" or sum_ is node.inputs[0]
            return along if first and abs(size - along.size) < 1e-5 * along.size else None
    return None


def _reduced(node: ir.Node) -> Along | None:
    """What `node` reduces along a single axis."""
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    given = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = list(node.attributes.get_ints("axes", [])) if given is None else given.reshape(-1).tolist()
    return Along(x, int(axes[0]) % len(x.shape)) if len(axes) == 1 else None


def _squared(value: ir.Value | None) -> ir.Value | None:
    """x where `value` is x squared."""
    node = None if value is None else value.producer()
    if node is None or len(node.inputs) != 2:
        return None
    twice = _is(node, "Mul") and node.inputs[0] is node.inputs[1]
    return node.inputs[0] if twice or (_is(node, "Pow") and scalar(node.inputs[1]) == 2.0) else None


def _reshaped(value: ir.Value | None) -> ir.Value | None:
    """What `value` is with other dimensions."""
    while value is not None and (node := value.producer()) is not None:
        if node.domain != "" or node.op_type not in ("Reshape", "Unsqueeze", "Squeeze"):
            break
        value = node.inputs[0]
    return value


def _rewrite(node: ir.Node, along: Along, epsilon: float, scale: ir.Value | None, graph: ir.Graph) -> None:
    """Put the operator in place of `node` and the product and sum that follow."""
    last, nodes = node, [node]
    own = None if scale is None else _along(scale, along)
    factors = {"Mul": np.ones(along.size, np.float32) if own is None else own, "Add": np.zeros(along.size, np.float32)}
    for op in factors:
        value = last.outputs[0]
        user = next(iter(value.uses())).node if used_once(value) else None
        if user is None or not _is(user, op) or user.outputs[0].shape != value.shape:
            continue
        array = _along(user.inputs[1] if user.inputs[0] is value else user.inputs[0], along)
        if array is not None:
            factors[op], last = (factors[op] * array if op == "Mul" else array), user
            nodes.append(user)
    y = last.outputs[0]
    inputs = [along.x, *(add_constant(graph, f"{node.name}_{op.lower()}", array) for op, array in factors.items())]
    output = ir.val(fresh_name(graph, f"{y.name}_norm"), y.dtype, y.shape)
    domain, op = ("", "LayerNormalization") if along.axis + 1 == len(along.x.shape or ()) else OPERATOR
    attributes = {"axis": -1 if domain == "" else along.axis, "epsilon": epsilon}
    name = fresh_name(graph, f"{node.name}_norm")
    made = ir.node(op, inputs, attributes, domain=domain, outputs=[output], name=name)
    derive(made, nodes)
    graph.insert_before(last, made)
    replace(y, output)


def _along(value: ir.Value | None, along: Along) -> np.ndarray | None:
    """The elements of a constant that differs along the axis only."""
    array, rank = constant_array(value), len(along.x.shape or ())
    if array is None or array.ndim > rank or array.size != along.size or rank - array.ndim > along.axis:
        return None
    here = array.shape[along.axis - rank] == along.size
    return np.ascontiguousarray(array.reshape(-1), np.float32) if here else None


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute an `OPERATOR` by the kernel."""
    x, scale, bias = node.inputs
    assert x is not None
    assert x.shape is not None
    assert scale is not None
    assert bias is not None
    dims = tuple(d if isinstance(d, int) else f"d{i}" for i, d in enumerate(x.shape))
    axis, epsilon = node.attributes.get_int("axis", 0), node.attributes.get_float("epsilon", 0.0)
    p = layer_norm.Across(dims, axis)
    parallel = kernels.threads(dims[:axis], p.size * p.inner * ELEMENT)
    symbol = kernels.symbol(
        (p, epsilon), "layer_norm", lambda s: layer_norm.across(p, epsilon, kernels.isa, parallel, s)
    )
    x = twins.first(x)
    assert x.shape is not None
    called = call(symbol, [x, scale, bias], list(x.shape), node)
    twins.insert(called)
    replace(node.outputs[0], called.outputs[0])
    return True


def _input(value: ir.Value | None, op: str) -> ir.Value | None:
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and _is(node, op) else None


def _is(node: ir.Node, op: str) -> bool:
    return node.op_type == op and node.domain == ""
