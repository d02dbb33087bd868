"""Quantized (Q/DQ) models in integers: 8-bit values in memory, products of int8 summed in int32.

Regions are found in the canonical ONNX graph and rewritten, first to ONNX's own integer operators (`emit`, `pools`),
then to products of int8 (`expand`); TVM fuses what rounds the sums to 8 bits into the kernel that makes them.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import constant_array, infer_shapes
from graphopt.targets.cuda.lowering.integer.emit import emit
from graphopt.targets.cuda.lowering.integer.expand import expand
from graphopt.targets.cuda.lowering.integer.pools import emit as emit_pool
from graphopt.targets.cuda.lowering.integer.products import Product
from graphopt.targets.cuda.lowering.integer.products import find as find_products
from graphopt.targets.integer.signs import make_signed, make_unsigned
from graphopt.targets.llvm.plan.integer.carry import carry
from graphopt.targets.llvm.plan.integer.order import hoist
from graphopt.targets.llvm.plan.integer.pools import find as find_pools
from graphopt.targets.llvm.plan.weights import WEIGHTED, make_float
from graphopt.targets.lowering.integer_ops import expand_dynamic
from graphopt.targets.lowering.nodes import constant

INTEGER = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"})


def to_integers(model: ir.Model) -> dict[str, str]:
    """Rewrite the main graph of `model`, canonical and with shapes inferred, in place.

    Returns for each Conv, Gemm and MatMul of a quantized model whether it is computed in "int8" or "float32".
    """
    if not any(node.domain == "" and node.op_type in INTEGER for node in model.graph):
        return {}
    found = to_integer_operators(model)
    if expand_dynamic(model):
        infer_shapes(model)
    make_signed(model)
    expand(model)
    _flatten_numbers(model.graph)
    common.RemoveUnusedNodesPass()(model)
    return found


def to_integer_operators(model: ir.Model) -> dict[str, str]:
    """The first half of `to_integers`: a model that computes the same, and that onnxruntime runs as well."""
    make_unsigned(model)
    carry(model)
    hoist(model.graph)
    nodes = list(model.graph)
    regions = find_products(nodes)
    taken = {node for region in regions for node in region.nodes}
    found = {str(node.name): "int8" for region in regions for node in region.nodes[:1]}
    found |= {str(n.name): "int8" for n in nodes if n.domain == "" and n.op_type in ("ConvInteger", "MatMulInteger")}
    position = {node: index for index, node in enumerate(nodes)}
    every = [*regions, *find_pools(nodes, taken)]
    for region in sorted(every, key=lambda one: -position[one.nodes[-1]]):  # readers first: they name what they read
        if isinstance(region, Product):
            emit(region)
        else:
            emit_pool(region)
    common.RemoveUnusedNodesPass()(model)
    for node in list(model.graph):
        if node.domain == "" and node.op_type in WEIGHTED:
            make_float(model.graph, node)
            found[str(node.name)] = "float32"
    common.RemoveUnusedNodesPass()(model)
    return found


def _flatten_numbers(graph: ir.Graph) -> None:
    """Numbers of shape [1] become scalars, which layouts go past: an activation is fused with its product then."""
    for node in list(graph):
        if node.domain != "" or node.op_type not in ("Add", "Div", "Mul", "Sub"):
            continue
        for index, value in enumerate(node.inputs):
            other, array = node.inputs[1 - index], constant_array(value)
            if array is None or array.size != 1 or array.ndim == 0 or other is None or other.shape is None:
                continue
            if len(other.shape) >= array.ndim and constant_array(other) is None:
                node.replace_input_with(index, constant(node, "number", array.reshape(())))
