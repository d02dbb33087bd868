"""Products of one-hot vectors are rows of a table, and arithmetic on rows of a small table is done on the table.

``OneHot(i) @ W`` is row i of W, or zeros where i is out of range: one row of zeros more, and a Gather. (The ones may
have been quantized, and W too.) What follows a
Gather from a constant table and treats every row alike (a bias, an activation) is computed for all rows of the table
when the model is compiled, where there are no more of them than rows are picked.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.graph import add_constant, constant_array, derive, fresh_name
from graphopt.targets.llvm.plan.evaluate import evaluate
from graphopt.targets.llvm.plan.integer.region import dequantized, quantized
from graphopt.targets.llvm.plan.layout import replace
from graphopt.targets.llvm.plan.weights import float_constant

ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Neg", "Abs", "Sqrt", "Reciprocal", "Exp", "Log", "Erf", "Tanh"}
    | {"Sigmoid", "Relu", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign", "HardSigmoid", "HardSwish", "Clip"}
    | {"Gelu"}
)
INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def look_up(model: ir.Model) -> None:
    """Rewrite the main graph of `model` in place."""
    for node in list(model.graph):
        if node.domain == "" and node.op_type in ("MatMul", "Gemm"):
            _product(node, model.graph)
    common.RemoveUnusedNodesPass()(model)
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "Gather":
            _through(node, model.graph)
    common.RemoveUnusedNodesPass()(model)


def _product(node: ir.Node, graph: ir.Graph) -> None:
    w, bias = float_constant(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    if w is None or w.ndim != 2 or w.dtype != np.float32 or not np.isfinite(w).all():
        return  # a zero times what is not finite isn't zero
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return
    if node.attributes.get_int("transA", 0) or node.attributes.get_int("transB", 0):
        return
    hot, one = _rounded(node.inputs[0])
    found = _compared(hot, len(w)) or _one_hot(hot, len(w))
    y = node.outputs[0]
    if found is None or y.shape is None:
        return
    w = one * w
    numbers, wraps = found
    zeros = np.zeros((1, w.shape[1]), np.float32)
    # -1 and len(w) pick zeros; where negative numbers count from the end, -1 to -len(w) pick W's rows once more
    rows, low = ([w, zeros, zeros, w], -len(w) - 1) if wraps else ([w, zeros], -1)
    table = add_constant(graph, f"{node.name}_rows", np.concatenate(rows) + np.float32(0.0))  # -0.0 + 0.0 is 0.0
    dims = list(y.shape)[:-1]
    if numbers.shape is not None and len(numbers.shape) == len(dims) + 1:
        axes = add_constant(graph, f"{node.name}_axes", np.array([-1], np.int64))
        numbers = _put(node, "Squeeze", [numbers, axes], dims, numbers.dtype)
    dtype = np.int64 if numbers.dtype == ir.DataType.INT64 else np.int32
    bounds = [add_constant(graph, f"{node.name}_{i}", np.array(b, dtype)) for i, b in enumerate((low, len(w)))]
    numbers = _put(node, "Clip", [numbers, *bounds], dims, numbers.dtype)
    result = _put(node, "Gather", [table, numbers], list(y.shape), y.dtype)
    if bias is not None:
        result = _put(node, "Add", [result, bias], list(y.shape), y.dtype)
    replace(y, result)


def _rounded(value: ir.Value | None) -> tuple[ir.Value | None, np.float32]:
    """What `value` is before it is quantized and dequantized, and what becomes of 1 there; 0 stays 0."""
    one, real = np.float32(1), dequantized(value)
    quantizer = None if real is None else real.value.producer()
    made = None if quantizer is None else quantized(quantizer)
    if real is None or quantizer is None or made is None or (made.scale, made.zero) != (real.scale, real.zero):
        return value, one
    steps = np.clip(np.rint(one / real.scale), -real.zero, 255 - real.zero)
    return quantizer.inputs[0], np.float32(steps) * real.scale


def _compared(value: ir.Value | None, depth: int) -> tuple[ir.Value, bool] | None:
    """The numbers [..., 1] where `value` is ``Cast(numbers == [0, 1, ..., depth - 1])``, which is 1 or 0."""
    cast = _made(value, "Cast")
    equal = None if cast is None else _made(cast.inputs[0], "Equal")
    if cast is None or equal is None or cast.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    for numbers, other in (equal.inputs[:2], equal.inputs[1::-1]):
        array = constant_array(other)
        if numbers is None or numbers.shape is None or numbers.dtype not in INTEGERS or array is None:
            continue
        along = array.size == depth and array.shape[-1:] == (depth,) and array.ndim <= len(numbers.shape)
        if along and len(numbers.shape) and numbers.shape[-1] == 1 and np.array_equal(array.reshape(-1), range(depth)):
            return numbers, False
    return None


def _one_hot(value: ir.Value | None, depth: int) -> tuple[ir.Value, bool] | None:
    """The numbers of a OneHot of zeros and ones along the last axis; negative ones count from the end."""
    node = _made(value, "OneHot")
    if node is None or value is None or value.dtype != ir.DataType.FLOAT:
        return None
    numbers, (size, values) = node.inputs[0], map(constant_array, node.inputs[1:3])
    if numbers is None or numbers.shape is None or numbers.dtype not in INTEGERS or size is None or values is None:
        return None
    last = node.attributes.get_int("axis", -1) in (-1, len(numbers.shape))
    fits = size.reshape(-1).tolist() == [depth] and values.reshape(-1).tolist() == [0.0, 1.0]
    return (numbers, True) if last and fits else None


def _made(value: ir.Value | None, op: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op and node.domain == "" else None


def _put(
    at: ir.Node, op: str, inputs: list[ir.Value], dims: list[int | ir.SymbolicDim], dtype: ir.DataType | None
) -> ir.Value:
    """The result of a new node in front of `at`."""
    assert isinstance(at.graph, ir.Graph)
    output = ir.val(fresh_name(at.graph, f"{at.outputs[0].name}_{op.lower()}"), dtype, ir.Shape(dims))
    node = ir.node(op, inputs, outputs=[output], name=fresh_name(at.graph, f"{at.name}_{op.lower()}"))
    derive(node, (at,))
    at.graph.insert_before(at, node)
    return output


def _through(node: ir.Node, graph: ir.Graph) -> None:
    """Gather what follows from tables of its own."""
    (x, numbers), y = node.inputs, node.outputs[0]
    table, axis = constant_array(x), node.attributes.get_int("axis", 0)
    if table is None or table.ndim != 2 or table.dtype != np.float32 or axis not in (0, -2) or numbers is None:
        return
    if y.shape is None or not y.shape.is_static() or table.size > math.prod(y.shape.numpy()):
        return
    nodes, given = _alike(y)
    ends = [n.outputs[0] for n in nodes if _is_read_beyond(n.outputs[0], nodes)]
    if not ends:
        return
    for end, rows in zip(ends, evaluate(nodes, {**given, y: table}, ends), strict=True):
        inputs = [add_constant(graph, f"{end.name}_rows", rows), numbers]
        picked = _put(node, "Gather", inputs, list(y.shape), y.dtype)
        made = picked.producer()
        assert made is not None
        derive(made, nodes)
        replace(end, picked)


def _alike(y: ir.Value) -> tuple[list[ir.Node], dict[ir.Value, np.ndarray]]:
    """The elementwise nodes behind `y` that treat all rows alike, in order; the constants they read, for one row."""
    nodes: list[ir.Node] = []
    inside, given = {y}, dict[ir.Value, np.ndarray]()
    waiting = [use.node for use in y.uses()]
    while waiting:
        found = next((n for n in waiting if _takes(n, y, inside, given)), None)
        if found is None:
            break
        nodes.append(found)
        inside.add(found.outputs[0])
        users = [use.node for use in found.outputs[0].uses()]
        waiting = [n for n in dict.fromkeys([*waiting, *users]) if n not in nodes]
    return nodes, given


def _takes(node: ir.Node, y: ir.Value, inside: set[ir.Value], given: dict[ir.Value, np.ndarray]) -> bool:
    """Whether `node` does the same to each row; its constants are added to those `given`."""
    result = node.outputs[0]
    if node.domain != "" or node.op_type not in ELEMENTWISE or result.shape != y.shape or result.dtype != y.dtype:
        return False
    constants: dict[ir.Value, np.ndarray] = {}
    for value in node.inputs:
        if value is None or value in inside:
            continue
        array = constant_array(value)
        assert y.shape is not None
        if array is None or array.ndim > len(y.shape) or array.size not in (1, *array.shape[-1:]):
            return False
        constants[value] = array.reshape(()) if array.size == 1 else array.reshape(-1)
    given.update(constants)
    return True


def _is_read_beyond(value: ir.Value, nodes: list[ir.Node]) -> bool:
    return value.is_graph_output() or any(use.node not in nodes for use in value.uses())
