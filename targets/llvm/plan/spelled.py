"""Before anything is planned: operators written as others that kernels know, where that is the same function.

- MaxPool and AveragePool that round sizes up: larger padding at the end, rounded down.
- Pad by zeros that only convolutions read: their own padding.
- Convolution whose outermost taps meet nothing but padding: without them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import add_constant, constant_array, derive


def spell(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place."""
    for rewrite in (_pool, _pad):
        for node in list(model.graph):
            if node.domain == "" and node.graph is not None:
                rewrite(node)
    for node in model.graph:
        if node.domain == "" and node.op_type == "Conv":
            _trim(node, model.graph)
    common.RemoveUnusedNodesPass()(model)


def _pool(node: ir.Node) -> None:
    """Windows that reach past the padded end: padding as long as they reach."""
    if node.op_type not in ("MaxPool", "AveragePool") or not node.attributes.get_int("ceil_mode", 0):
        return
    x, y = node.inputs[0], node.outputs[0]
    kernel = list(node.attributes.get_ints("kernel_shape", []))
    if x is None or x.shape is None or y.shape is None or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return
    sizes = [(a, b) for a, b in zip(list(x.shape)[2:], list(y.shape)[2:], strict=True)]
    rank = len(kernel)
    strides, dilations = (list(node.attributes.get_ints(n, [1] * rank)) for n in ("strides", "dilations"))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * rank))
    for axis, (before, after) in enumerate(sizes):
        if not isinstance(before, int) or not isinstance(after, int):
            return
        reach = (after - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1
        more = reach - before - pads[axis] - pads[rank + axis]
        if more > 0 and node.op_type == "AveragePool" and node.attributes.get_int("count_include_pad", 0):
            return  # what lies past the padding isn't counted
        if more < -strides[axis]:
            return
        pads[rank + axis] += more if more > 0 else 0
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)


def _pad(node: ir.Node) -> None:
    """Zeros around positions, read by convolutions only."""
    if node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant" or len(node.inputs) > 3:
        return
    x, pads = node.inputs[0], constant_array(node.inputs[1])
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant_array(value)
    if x is None or x.shape is None or pads is None or (value is not None and (array is None or array.any())):
        return
    rank = len(x.shape)
    low, high = pads[:rank].tolist(), pads[rank:].tolist()
    users = [use.node for use in node.outputs[0].uses()]
    if any(low[:2]) or any(high[:2]) or min(*low, *high) < 0 or not users or node.outputs[0].is_graph_output():
        return
    for user in users:
        own = user.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        if user.op_type != "Conv" or user.domain != "" or not own or user.inputs[0] is not node.outputs[0]:
            return
        if user.inputs[1] is node.outputs[0] or list(user.inputs).count(node.outputs[0]) > 1:
            return
    for user in users:
        valid = user.attributes.get_string("auto_pad", "NOTSET") == "VALID"
        given = [0] * 2 * (rank - 2) if valid else list(user.attributes.get_ints("pads", [0] * 2 * (rank - 2)))
        total = [a + b for a, b in zip(given, [*low[2:], *high[2:]], strict=True)]
        user.attributes.pop("auto_pad", None)
        user.attributes["pads"] = ir.AttrInt64s("pads", total)
        user.replace_input_with(0, x)
        derive(user, (user, node))


def _trim(node: ir.Node, graph: ir.Graph) -> None:
    """Long kernels on short lines: 64 taps between zeros see 8 positions through 15 of them."""
    x, y, w = node.inputs[0], node.outputs[0], constant_array(node.inputs[1])
    if x is None or x.shape is None or y.shape is None or w is None:
        return
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return
    rank = w.ndim - 2
    strides, dilations = (list(node.attributes.get_ints(n, [1] * rank)) for n in ("strides", "dilations"))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * rank))
    kept = [slice(None), slice(None)]
    for axis, (before, after) in enumerate(zip(list(x.shape)[2:], list(y.shape)[2:], strict=True)):
        if not isinstance(before, int) or not isinstance(after, int):
            return
        low, high, reach = 0, w.shape[2 + axis], (after - 1) * strides[axis]
        while high - low > 1 and pads[axis] >= dilations[axis] and reach < pads[axis]:
            low, pads[axis] = low + 1, pads[axis] - dilations[axis]  # tap `low` ends before the first position
        while (
            high - low > 1
            and pads[rank + axis] >= dilations[axis]
            and ((high - 1 - low) * dilations[axis] - pads[axis] >= before)
        ):
            high, pads[rank + axis] = high - 1, pads[rank + axis] - dilations[axis]
        kept.append(slice(low, high))
    trimmed = w[tuple(kept)]
    if trimmed.shape == w.shape:
        return
    node.replace_input_with(1, add_constant(graph, f"{node.name}_taps", np.ascontiguousarray(trimmed)))
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(trimmed.shape[2:]))
