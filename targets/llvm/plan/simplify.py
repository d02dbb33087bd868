"""Before anything is planned: what exporters write out in several operators, written as the one that kernels know."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import add_constant, constant_array, fresh_name, used_once

Array = np.ndarray


def simplify(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place.

    - Sum of several values: additions.
    - BatchNormalization at inference: a product and a sum for each channel.
    - ``clip(x + 3, 0, 6) / 6`` is HardSigmoid, ``x`` times it HardSwish, however it is grouped.
    - A convolution followed by arithmetic with one constant for each channel: other weights and bias.
    - A convolution to one channel: a depthwise one, whose vectors are full, and the sum of its channels.
    """
    for rewrite in (_sum, _batch_norm, _hard_sigmoid, _hard_swish, _into_convolution, _one_channel):
        for node in list(model.graph):
            if node.domain == "" and node.graph is not None and node.inputs:
                rewrite(node, model.graph)
    common.RemoveUnusedNodesPass()(model)


def _replace(node: ir.Node, op: str, inputs: list[ir.Value | None], attributes: dict[str, float] | None = None) -> None:
    """Let ``op(inputs)`` take the place of `node`."""
    graph, old = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)
    new = _put(graph, node, op, inputs, attributes)
    if old.is_graph_output():
        old.name, new.name = new.name, old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _put(
    graph: ir.Graph, at: ir.Node, op: str, inputs: list[ir.Value | None], attributes: dict[str, float] | None = None
) -> ir.Value:
    like = at.outputs[0]
    output = ir.val(fresh_name(graph, f"{like.name}_{op.lower()}"), like.dtype, like.shape)
    name = fresh_name(graph, f"{at.name}_{op.lower()}")
    graph.insert_before(at, ir.node(op, inputs, attributes or {}, outputs=[output], name=name))
    return output


def _sum(node: ir.Node, graph: ir.Graph) -> None:
    if node.op_type != "Sum" or len(node.inputs) < 2:
        return
    total = node.inputs[0]
    if any(v is None or v.shape is None or v.shape != node.outputs[0].shape for v in node.inputs):
        return
    for value in node.inputs[1:-1]:
        total = _put(graph, node, "Add", [total, value])
    _replace(node, "Add", [total, node.inputs[-1]])


def _batch_norm(node: ir.Node, graph: ir.Graph) -> None:
    """``y = x * s + t`` with ``s = scale / sqrt(var + epsilon)``, ``t = bias - mean * s``."""
    if node.op_type != "BatchNormalization" or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return
    x, parameters = node.inputs[0], [constant_array(v) for v in node.inputs[1:5]]
    found = [p.astype(np.float64) for p in parameters if p is not None]
    if len(found) != 4 or x is None or x.shape is None or node.attributes.get_int("training_mode", 0):
        return
    scale, bias, mean, var = found
    s = scale / np.sqrt(var + node.attributes.get_float("epsilon", 1e-5))
    full = (-1,) + (1,) * (len(x.shape) - 2)
    terms = [
        add_constant(graph, f"{node.name}_{hint}", a.astype(np.float32).reshape(full))
        for hint, a in (("s", s), ("t", bias - mean * s))
    ]
    _replace(node, "Add", [_put(graph, node, "Mul", [x, terms[0]]), terms[1]])


def _scalar(value: ir.Value | None) -> float | None:
    array = constant_array(value)
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def _operand(node: ir.Node | None, op: str, constant: float) -> ir.Value | None:
    """The other operand of an arithmetic `node` with this constant."""
    if node is None or node.domain != "" or node.op_type != op or not used_once(node.outputs[0]):
        return None
    for value, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        c = _scalar(other)
        if c is not None and abs(c - constant) < 1e-6 and (op != "Div" or value is node.inputs[0]):
            return value
    return None


def _relu6_of_x_plus_3(value: ir.Value | None) -> ir.Value | None:
    """x where `value` is ``clip(x + 3, 0, 6)``, used once."""
    clip = None if value is None else value.producer()
    if clip is None or clip.domain != "" or clip.op_type != "Clip" or len(clip.inputs) < 3:
        return None
    if not used_once(clip.outputs[0]) or (_scalar(clip.inputs[1]), _scalar(clip.inputs[2])) != (0.0, 6.0):
        return None
    return _operand(clip.inputs[0].producer() if clip.inputs[0] else None, "Add", 3.0)


def _sixth(node: ir.Node) -> ir.Value | None:
    """The value that `node` divides by 6."""
    if node.op_type == "Div" and _scalar(node.inputs[1]) == 6.0:
        return node.inputs[0]
    if node.op_type == "Mul":
        for value, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
            c = _scalar(other)
            if c is not None and abs(c - 1 / 6) < 1e-6:
                return value
    return None


def _hard_sigmoid(node: ir.Node, graph: ir.Graph) -> None:
    x = _relu6_of_x_plus_3(_sixth(node))
    if x is not None and x.dtype == ir.DataType.FLOAT and x.shape == node.outputs[0].shape:
        _replace(node, "HardSigmoid", [x], {"alpha": 1 / 6, "beta": 0.5})


def _hard_swish(node: ir.Node, graph: ir.Graph) -> None:
    """``x * hard_sigmoid(x)``, or ``x * clip(x + 3, 0, 6) / 6`` multiplied first."""
    if node.op_type not in ("Mul", "Div"):
        return
    if node.op_type == "Mul":
        for x, gate in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
            producer = None if gate is None else gate.producer()
            if producer is None or producer.op_type != "HardSigmoid" or producer.inputs[0] is not x:
                continue
            alpha, beta = producer.attributes.get_float("alpha", 0.2), producer.attributes.get_float("beta", 0.5)
            if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5 and used_once(producer.outputs[0]):
                _replace(node, "HardSwish", [x])
                return
    whole = _sixth(node)
    product = None if whole is None else whole.producer()
    if product is None or product.op_type != "Mul" or not used_once(product.outputs[0]):
        return
    for x, gate in ((product.inputs[0], product.inputs[1]), (product.inputs[1], product.inputs[0])):
        if x is not None and _relu6_of_x_plus_3(gate) is x and x.dtype == ir.DataType.FLOAT:
            _replace(node, "HardSwish", [x])
            return


_FOLDED: dict[str, Callable[[Array, Array, Array, list[int]], tuple[Array, Array]]] = {
    "Mul": lambda w, b, c, along: (w * c.reshape(along), b * c),
    "Div": lambda w, b, c, along: (w / c.reshape(along), b / c),
    "Add": lambda w, b, c, along: (w, b + c),
    "Sub": lambda w, b, c, along: (w, b - c),
}


def _into_convolution(node: ir.Node, graph: ir.Graph) -> None:
    if node.op_type not in _FOLDED or len(node.inputs) != 2:
        return
    commutes = node.op_type in ("Add", "Mul")
    orders = [(node.inputs[0], node.inputs[1])] + ([(node.inputs[1], node.inputs[0])] if commutes else [])
    for value, other in orders:
        conv, c = None if value is None else value.producer(), constant_array(other)
        if (
            value is None
            or conv is None
            or conv.op_type not in ("Conv", "ConvTranspose")
            or conv.domain != ""
            or c is None
        ):
            continue
        bias = conv.inputs[2] if len(conv.inputs) > 2 else None
        w = _constant(conv.inputs[1], quantized=node.op_type in ("Add", "Sub"))
        axis = 0 if conv.op_type == "Conv" else 1
        if w is None or w.dtype != np.float32 or (axis == 1 and conv.attributes.get_int("group", 1) != 1):
            continue
        channels = w.shape[axis]
        b = np.zeros(channels) if bias is None else _constant(bias, quantized=True)
        if b is None or not used_once(value):
            continue
        if c.size not in (1, channels) or c.ndim > w.ndim or (c.size > 1 and c.shape[-(w.ndim - 1) :][0] != c.size):
            continue
        if (c.size > 1 and c.ndim < w.ndim - 1) or (node.op_type == "Div" and not np.all(c)):
            continue
        flat = np.broadcast_to(c.astype(np.float64).reshape(-1), (channels,))
        along = [1] * axis + [-1] + [1] * (w.ndim - 1 - axis)
        new_w, new_b = _FOLDED[node.op_type](w.astype(np.float64), b.astype(np.float64), flat, along)
        weights = conv.inputs[1]
        if node.op_type in ("Mul", "Div"):
            weights = add_constant(graph, f"{conv.name}_scaled", new_w.astype(np.float32))
        shift = add_constant(graph, f"{conv.name}_shift", new_b.astype(np.float32))
        attributes = dict(conv.attributes)
        output = ir.val(fresh_name(graph, f"{value.name}_folded"), value.dtype, node.outputs[0].shape)
        new = ir.node(conv.op_type, [conv.inputs[0], weights, shift], attributes, outputs=[output],
                      name=fresh_name(graph, f"{conv.name}_folded"))  # fmt: skip
        graph.insert_before(node, new)
        old = node.outputs[0]
        if old.is_graph_output():
            old.name, output.name = output.name, old.name
        old.replace_all_uses_with(output, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        return


def _constant(value: ir.Value | None, quantized: bool) -> Array | None:
    """A constant, or if `quantized` what a DequantizeLinear with one scale, or one for each of axis 0, makes of one."""
    node = None if value is None else value.producer()
    if not quantized or node is None or node.domain != "" or node.op_type != "DequantizeLinear":
        return constant_array(value)
    q, scale = constant_array(node.inputs[0]), constant_array(node.inputs[1])
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if q is None or scale is None or zero is None or node.attributes.get_int("block_size", 0):
        return None
    if scale.size > 1 and (node.attributes.get_int("axis", 1) % q.ndim or scale.ndim > 1):
        return None
    along = (-1, *[1] * (q.ndim - 1))
    return ((q.astype(np.float64) - zero.reshape(along)) * scale.reshape(along)).astype(np.float32)


def _one_channel(node: ir.Node, graph: ir.Graph) -> None:
    w, x, y = constant_array(node.inputs[1]) if node.op_type == "Conv" else None, node.inputs[0], node.outputs[0]
    if w is None or w.ndim != 4 or w.shape[0] != 1 or w.shape[1] < 4 or w.shape[2] * w.shape[3] < 4:
        return
    if x is None or y.shape is None or w.dtype != np.float32 or node.attributes.get_int("group", 1) != 1:
        return
    channels = w.shape[1]
    each = add_constant(graph, f"{node.name}_each", np.ascontiguousarray(w.transpose(1, 0, 2, 3)))
    ones = add_constant(graph, f"{node.name}_ones", np.ones((1, channels, 1, 1), np.float32))
    n, _, *size = y.shape
    products = ir.val(fresh_name(graph, f"{y.name}_products"), y.dtype, ir.Shape([n, channels, *size]))
    attributes = {**node.attributes, "group": ir.AttrInt64("group", channels)}
    name = fresh_name(graph, f"{node.name}_products")
    graph.insert_before(node, ir.node("Conv", [x, each], attributes, outputs=[products], name=name))
    _replace(node, "Conv", [products, ones, *node.inputs[2:]])
