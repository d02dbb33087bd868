"""Operators that move or pick values moved in front of DequantizeLinear: they have a quarter of the bytes to move then.

``f(DequantizeLinear(q)) = DequantizeLinear(f(q))``, and ``QuantizeLinear(DequantizeLinear(q)) = q`` of one scale and
zero point: both exact. What is left of a chain of such operators between two quantizers is on integers only.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import add_constant, constant_array, derive, fresh_name
from graphopt.targets.llvm.plan.integer.region import Quantized, dequantized, quantized

FIRST = frozenset(
    {"DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice"}
    | {"SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators whose first input holds the data; Concat's all do."""


def carry(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place; activations must be uint8 (see `targets.integer.signs`)."""
    for node in list(model.graph):
        if node.domain != "":
            continue
        if node.op_type == "QuantizeLinear":
            _cancel(node)
        elif node.op_type in FIRST or node.op_type == "Concat":
            _exchange(node, model.graph)
    common.RemoveUnusedNodesPass()(model)


def _cancel(node: ir.Node) -> None:
    q, result = dequantized(node.inputs[0]), quantized(node)
    if q is None or result is None or (q.scale, q.zero) != (result.scale, result.zero):
        return
    source, value = q.value, result.value
    if value.is_graph_output():
        if source.is_graph_output() or source.is_graph_input():
            return
        value.name, source.name = source.name, value.name
    value.replace_all_uses_with(source, replace_graph_outputs=True)


def _exchange(node: ir.Node, graph: ir.Graph) -> None:
    data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    sources = [q for v in data if (q := dequantized(v)) is not None]
    if not sources or len(sources) < len(data) or len({(q.scale, q.zero) for q in sources}) > 1:
        return
    if len(node.outputs) > 1 and node.op_type != "Split":
        return
    inputs: list[ir.Value | None] = [*(q.value for q in sources), *node.inputs[len(data) :]]
    if node.op_type == "Resize" and not _picks(node):
        return
    if node.op_type == "Pad" and not _pads(node, sources[0], inputs, graph):
        return
    outputs = [ir.val(fresh_name(graph, f"{v.name}_bytes"), ir.DataType.UINT8, v.shape) for v in node.outputs]
    moved = ir.node(
        node.op_type, inputs, dict(node.attributes), outputs=outputs, name=fresh_name(graph, f"{node.name}_bytes")
    )
    derive(moved, [node])
    graph.insert_before(node, moved)
    pattern = next(v for v in data if v is not None).producer()
    assert pattern is not None
    for old, q in zip(node.outputs, outputs, strict=True):
        real = ir.val(fresh_name(graph, f"{old.name}_real"), ir.DataType.FLOAT, old.shape)
        name = fresh_name(graph, f"{node.name}_real")
        back = ir.node("DequantizeLinear", [q, *pattern.inputs[1:]], outputs=[real], name=name)
        derive(back, [node])
        graph.insert_before(node, back)
        if old.is_graph_output():
            old.name, real.name = real.name, old.name
        old.replace_all_uses_with(real, replace_graph_outputs=True)


def _picks(node: ir.Node) -> bool:
    """Whether a Resize picks values and takes no means of them, and none from outside."""
    nearest = node.attributes.get_string("mode", "nearest") == "nearest"
    return nearest and node.attributes.get_string("coordinate_transformation_mode", "") != "tf_crop_and_resize"


def _pads(node: ir.Node, q: Quantized, inputs: list[ir.Value | None], graph: ir.Graph) -> bool:
    """Whether 8 bits have what a Pad puts around its input; it becomes the third of `inputs`."""
    if node.attributes.get_string("mode", "constant") != "constant":
        return True
    given = node.inputs[2] if len(node.inputs) > 2 else None
    value = np.zeros((), np.float32) if given is None else constant_array(given)
    if value is None or value.size != 1:
        return False
    steps = np.rint(np.float32(value.reshape(-1)[0]) / q.scale)
    byte = int(steps) + q.zero if np.isfinite(steps) else -1
    if not 0 <= byte <= 255 or np.float32(steps) * q.scale != np.float32(value.reshape(-1)[0]):
        return False
    inputs[2:3] = [add_constant(graph, f"{node.name}_byte", np.array(byte, np.uint8))]
    return True
