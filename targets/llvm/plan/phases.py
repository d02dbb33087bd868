"""Transposed convolutions whose windows overlap, as convolutions: one for each phase of the stride.

``y[s q + r] = sum over t of x[q + m - t] w[k + s t]`` with ``m = (r + p) // s`` and ``k = (r + p) % s``, for stride s
and padding p: for each r a convolution of stride 1 with T taps in reverse, padded by ``T - 1 - m`` in front. An
activation that follows is done to each phase. `OPERATOR` puts the phases together.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import add_constant, constant_array, derive, fresh_name
from graphopt.targets.llvm.kernels import interleave
from graphopt.targets.llvm.plan import transposed
from graphopt.targets.llvm.plan.epilogues import simple
from graphopt.targets.llvm.plan.kernels import ELEMENT, Kernels, call
from graphopt.targets.llvm.plan.layout import Dim, Image, Twins, image, is_turned, replace
from graphopt.targets.llvm.plan.pointwise import only_user

OPERATOR = ("graphopt", "Interleave")
Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class _Problem:
    weight: Array  # [CI, CO / group, KH, KW]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]
    group: int
    x: Image
    y: Image


def split(model: ir.Model) -> None:
    """Rewrite the transposed convolutions of the main graph that no kernel covers, in place."""
    for node in list(model.graph):
        found = _problem(node)
        if found is not None:
            _rewrite(node, found, model.graph)
    common.RemoveUnusedNodesPass()(model)


def _problem(node: ir.Node) -> _Problem | None:
    if node.op_type != "ConvTranspose" or node.domain != "" or transposed.problem(node) is not None:
        return None
    weight, bias = constant_array(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    x, y = image(node.inputs[0]), image(node.outputs[0])
    if weight is None or weight.dtype != np.float32 or x is None or y is None or "output_shape" in node.attributes:
        return None
    if (bias is not None and constant_array(bias) is None) or weight.ndim not in (3, 4):
        return None
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    if any(v is not None and is_turned(v) for v in (node.inputs[0], node.outputs[0])):
        return None
    line = weight.ndim == 3

    def pair(name: str, default: int) -> tuple[int, int]:
        sizes = list(node.attributes.get_ints(name, [default] * 2 * (weight.ndim - 2)))
        return (default, sizes[0]) if line else (sizes[0], sizes[1])

    strides, dilations, pads = pair("strides", 1), pair("dilations", 1), pair("pads", 0)
    if any(d > 1 and s > 1 for d, s in zip(dilations, strides, strict=True)):
        return None
    w = weight[:, :, None] if line else weight
    return _Problem(w, strides, dilations, pads, node.attributes.get_int("group", 1), x, y)


def _rewrite(node: ir.Node, p: _Problem, graph: ir.Graph) -> None:
    size = (-(-p.y.h // p.strides[0]), -(-p.y.w // p.strides[1]))
    found = [_phase(p, r, size) for r in itertools.product(range(p.strides[0]), range(p.strides[1]))]
    nodes, result = _activations(node)
    phases = [_convolution(node, nodes, p, *phase, size, graph) for phase in found]
    output = phases[0]
    if len(phases) > 1:
        output = ir.val(fresh_name(graph, f"{result.name}_whole"), result.dtype, result.shape)
        joined = ir.node(
            OPERATOR[1], phases, {"strides": list(p.strides)}, domain=OPERATOR[0], outputs=[output],
            name=fresh_name(graph, f"{node.name}_whole"),
        )  # fmt: skip
        derive(joined, (node,))
        graph.insert_before(nodes[-1], joined)
    replace(result, output)


def _activations(node: ir.Node) -> tuple[list[ir.Node], ir.Value]:
    """The transposed convolution and the activations that follow it, and what they end in."""
    nodes, value = [node], node.outputs[0]
    while (user := only_user(value)) is not None and simple(user, value) is not None:
        nodes.append(user)
        value = user.outputs[0]
    return nodes, value


def _phase(p: _Problem, r: tuple[int, int], size: tuple[int, int]) -> tuple[Array, list[int]]:
    """The weight [CI, CO / group, TH, TW] and the padding of a phase."""
    weight, before, after = p.weight, [0, 0], [0, 0]
    for i, before_size in enumerate((p.x.h, p.x.w)):
        ahead, first = divmod(r[i] + p.pads[i], p.strides[i])
        taps = np.flip(np.take(weight, range(first, weight.shape[2 + i], p.strides[i]), 2 + i), 2 + i)
        if taps.shape[2 + i] == 0:
            taps = np.zeros_like(np.take(weight, [0], 2 + i))
        low = p.dilations[i] * (taps.shape[2 + i] - 1) - ahead
        high = size[i] + p.dilations[i] * (taps.shape[2 + i] - 1) - before_size - low
        zeros = [max(0, -(edge // p.dilations[i])) for edge in (low, high)]  # more taps instead of less padding
        weight = np.pad(taps, [(0, 0)] * (2 + i) + [(zeros[0], zeros[1])] + [(0, 0)] * (1 - i))
        before[i], after[i] = (edge + z * p.dilations[i] for edge, z in zip((low, high), zeros, strict=True))
    return weight, [*before, *after]


def _convolution(
    node: ir.Node, nodes: list[ir.Node], p: _Problem, weight: Array, pads: list[int], size: tuple[int, int],
    graph: ir.Graph,
) -> ir.Value:  # fmt: skip
    ci, co = weight.shape[:2]
    turned = weight.reshape(p.group, ci // p.group, co, *weight.shape[2:]).swapaxes(1, 2)
    array = np.ascontiguousarray(turned.reshape(p.group * co, ci // p.group, *weight.shape[2:]))
    line = len(node.outputs[0].shape or ()) == 3
    dims: list[Dim] = [p.y.n, p.y.c, *size]
    if line:
        array, pads, dims = array[:, :, 0], pads[1::2], [p.y.n, p.y.c, size[1]]
    attributes = {"pads": pads, "dilations": list(p.dilations[1:] if line else p.dilations), "group": p.group}
    inputs = [node.inputs[0], add_constant(graph, f"{node.name}_phase", array), *node.inputs[2:3]]
    value = _put(node, "Conv", inputs, attributes, dims, nodes[-1], graph)
    for before, follower in itertools.pairwise(nodes):
        operands = [value if v is before.outputs[0] else v for v in follower.inputs]
        value = _put(follower, follower.op_type, operands, dict(follower.attributes), dims, nodes[-1], graph)
    return value


def _put(
    like: ir.Node, op: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any], dims: Sequence[Dim],
    at: ir.Node, graph: ir.Graph,
) -> ir.Value:  # fmt: skip
    output = ir.val(fresh_name(graph, f"{like.outputs[0].name}_phase"), like.outputs[0].dtype, ir.Shape(dims))
    node = ir.node(op, inputs, attributes, outputs=[output], name=fresh_name(graph, f"{like.name}_phase"))
    derive(node, (like,))
    graph.insert_before(at, node)
    return output


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute an `OPERATOR` by the kernel."""
    shape, part = image(node.outputs[0]), image(node.inputs[0])
    assert shape is not None
    assert part is not None
    strides = tuple(node.attributes.get_ints("strides", []))
    down, across = strides if len(strides) == 2 else (1, *strides)
    parallel = kernels.threads((shape.batch, shape.h, shape.w), shape.c * ELEMENT)
    key = ("interleave", shape.batch, (part.h, part.w), (shape.h, shape.w), shape.c, (down, across))
    symbol = kernels.symbol(key, "interleave", lambda s: interleave.make(*key[1:], kernels.isa, parallel, s))
    called = call(symbol, [twins.last(v) for v in node.inputs if v is not None], shape.last, node)
    twins.insert(called)
    twins.set(node.outputs[0], called.outputs[0])
    return True
