"""Turn a model into the plainer ONNX that TVM's importer reads: no functions, constants where they are known."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graphopt.graph import add_constant, constant_array, derive, fresh_name, infer_shapes
from graphopt.targets.lowering.block_weights import drop_zero_points, expand_nbits
from graphopt.targets.lowering.decompose import decompose
from graphopt.targets.lowering.functions import expand_functions
from graphopt.targets.lowering.qlinear import to_qdq
from graphopt.targets.lowering.shape_chains import simplify_shape_chains
from graphopt.targets.lowering.support import EXTERNAL
from graphopt.targets.lowering.symbols import name_symbols
from graphopt.targets.lowering.tables import gather_before_dequantizing

# Folding these would put back what a pass took out: the small integer weights of a quantized model.
KEPT = frozenset({"DequantizeLinear"})
MAX_GROWTH = 1 << 16  # bytes a folded constant may be larger than what it is computed from


def canonicalise(model: ir.Model) -> ir.Model:
    """Rewrite `model` in place, keeping its inputs, outputs and results; returns it, or what replaces it.

    1. Local functions are inlined; quantized operators become Quantize-/DequantizeLinear around float ones.
    2. Operators without a converter are replaced by their ONNX definition, where they have one.
    3. What depends on constants and known shapes only is computed, unless the result is much larger.
    4. Slices of everything go; shapes that the graph computes are written the way the importer reads them, equal ones
       by equal names.
    5. Constants become initializers, of the main graph.
    6. Targets of Expand are spelt out, constant operands of Gemm transposed.
    7. Dead nodes and initializers go.
    """
    common.InlinePass()(model)
    _import_quantized(model)
    model = decompose(expand_functions(decompose(model)))
    _fold(model)
    simplify_shape_chains(model)
    name_symbols(model)
    _free_outputs(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    for node in model.graph.all_nodes():
        if node.domain == "" and node.op_type in _REWRITES:
            _REWRITES[node.op_type](node, model.graph)
    common.RemoveUnusedNodesPass()(model)
    return model


def _import_quantized(model: ir.Model) -> None:
    model.opset_imports.setdefault(EXTERNAL[0], 1)
    if to_qdq(model) | expand_nbits(model) | gather_before_dequantizing(model):
        infer_shapes(model)
    drop_zero_points(model)


def _fold(model: ir.Model) -> None:
    from onnxscript.optimizer import fold_constants

    for _ in range(2):  # a folded shape makes more shapes known
        fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=1 << 40,
            output_size_limit=1 << 40,
            should_fold=_worth_folding,
        )


def _worth_folding(node: ir.Node) -> bool:
    """Fold unless the result is much larger than what it is computed from; bfloat16 is always widened here, once."""
    if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.BFLOAT16:
        return True
    if node.domain != "" or node.op_type in KEPT:
        return False
    before = sum(value.const_value.nbytes for value in node.inputs if value is not None and value.const_value)
    return all(_nbytes(value) <= before + MAX_GROWTH for value in node.outputs)


def _nbytes(value: ir.Value) -> float:
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        return 0  # of unknown shape: what makes shapes unknown here is small integers
    return math.prod(value.shape.numpy()) * value.dtype.itemsize


def _free_outputs(model: ir.Model) -> None:
    """A constant that the model gives out goes through an Identity: so it can be an initializer like others."""
    for index, output in enumerate(model.graph.outputs):
        node = output.producer()
        if node is None or node.op_type != "Constant" or node.domain != "":
            continue
        tensor = ir.convenience.get_const_tensor(output)
        if tensor is not None:
            constant = add_constant(model.graph, f"{output.name}_constant", tensor.numpy())
            copy = ir.node("Identity", [constant], name=fresh_name(model.graph, f"{output.name}_identity"))
            derive(copy, [node])
            model.graph.insert_after(node, copy)
            model.graph.outputs[index] = copy.outputs[0]
            output.replace_all_uses_with(copy.outputs[0])
            name, output.name = output.name, fresh_name(model.graph, f"{output.name}_unused")
            copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = name, output.type, output.shape
            model.graph.remove(node, safe=True)


def _spell_out_expand(node: ir.Node, graph: ir.Graph) -> None:
    """Expand's target may be 1 where the input is larger, which the importer takes literally."""
    shape = node.outputs[0].shape
    if shape is None or not shape.is_static():
        return
    node.replace_input_with(1, add_constant(graph, f"{node.name}_shape", np.asarray(shape.numpy(), np.int64)))


def _transpose_weights(node: ir.Node, graph: ir.Graph) -> None:
    """Gemm's constant second operand is transposed here, once, and not at each run."""
    weights = node.inputs[1]
    array = constant_array(weights)
    if weights is None or array is None or len(weights.uses()) > 1 or not node.attributes.get_int("transB", 0):
        return
    node.replace_input_with(1, add_constant(graph, f"{weights.name}_transposed", np.ascontiguousarray(array.T)))
    node.attributes["transB"] = ir.AttrInt64("transB", 0)


_REWRITES = {"Expand": _spell_out_expand, "Gemm": _transpose_weights}
