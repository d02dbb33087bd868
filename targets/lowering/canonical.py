"""Turn a model into the plainer ONNX that TVM's importer reads: no functions, constants where they are known."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graphopt.graph import add_constant, constant_array, infer_shapes
from graphopt.targets.lowering.block_weights import drop_zero_points, expand_nbits
from graphopt.targets.lowering.qlinear import to_qdq
from graphopt.targets.lowering.shape_chains import simplify_shape_chains
from graphopt.targets.lowering.support import EXTERNAL, has_converter
from graphopt.targets.lowering.symbols import name_symbols
from graphopt.targets.lowering.tables import gather_before_dequantizing

# The importer knows these names but takes them for another operator or computes them wrongly; ONNX's own
# definition of them in simpler operators is exact.
EXPANDED = frozenset({"Attention", "Mish"})
# Operators that targets have kernels for, or else expand themselves (`integer_ops`).
WHOLE = frozenset({"DynamicQuantizeLinear"})
# Folding these would put back what a pass took out: the small integer weights of a quantized model.
KEPT = frozenset({"DequantizeLinear"})
MAX_GROWTH = 1 << 16  # bytes a folded constant may be larger than what it is computed from


def canonicalise(model: ir.Model) -> ir.Model:
    """Rewrite `model` in place, keeping its inputs, outputs and results; returns it, or what replaces it.

    1. Local functions are inlined; quantized operators become Quantize-/DequantizeLinear around float ones.
    2. Operators without a converter are replaced by their ONNX definition, where they have one.
    3. What depends on constants and known shapes only is computed, unless the result is much larger.
    4. Shapes that the graph computes are written the way the importer reads them, equal ones by equal names.
    5. Constants become initializers, of the main graph.
    6. Targets of Expand are spelt out, constant operands of Gemm transposed.
    7. Dead nodes and initializers go.
    """
    common.InlinePass()(model)
    _import_quantized(model)
    model = _expand_functions(model)
    _fold(model)
    simplify_shape_chains(model)
    name_symbols(model)
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


def _expand_functions(model: ir.Model) -> ir.Model:
    """Replace operators by their schema's function body until every operator left has a converter or no body."""
    import onnx
    import onnx.inliner

    version = model.opset_imports.get("", 1)
    names = {node.op_type for node in model.graph.all_nodes() if node.domain == "" and _has_body(node.op_type, version)}
    wanted = sorted(name for name in names - WHOLE if name in EXPANDED or not has_converter("", name))
    if not wanted:
        return model
    # The bodies of some operators depend on the types of their inputs, so every value needs its type.
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    try:
        expanded = onnx.inliner.inline_selected_functions(
            proto, [("", name) for name in wanted], exclude=False, inline_schema_functions=True
        )
    except RuntimeError:  # onnx can't build the body, for want of a type: the operator is refused by name later
        return model
    return ir.from_proto(expanded)


def _has_body(name: str, version: int) -> bool:
    import onnx

    if not onnx.defs.has(name, version, ""):
        return False
    schema = onnx.defs.get_schema(name, version, "")
    return schema.has_function or schema.has_context_dependent_function  # pyright: ignore[reportAttributeAccessIssue]


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
    """Fold unless the result is much larger than what it is computed from."""
    if node.domain != "" or node.op_type in KEPT:
        return False
    before = sum(value.const_value.nbytes for value in node.inputs if value is not None and value.const_value)
    return all(_nbytes(value) <= before + MAX_GROWTH for value in node.outputs)


def _nbytes(value: ir.Value) -> float:
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        return 0  # of unknown shape: what makes shapes unknown here is small integers
    return math.prod(value.shape.numpy()) * value.dtype.itemsize


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
