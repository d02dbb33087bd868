"""TVM's ONNX importer, made to name every node it fails on and to remember where each variable comes from."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import tvm
from tvm import relax, tirx
from tvm.relax.frontend import detach_params
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from graphopt.errors import LoweringError
from graphopt.targets.lowering.converters import CONVERTERS, GUARDS
from graphopt.targets.lowering.int8 import INT8
from graphopt.targets.lowering.open_sizes import agreeing
from graphopt.targets.lowering.origins import Origin, origin
from graphopt.targets.lowering.shape_chains import MAX_ELEMENTS
from graphopt.targets.lowering.size_order import keep_order
from graphopt.targets.lowering.support import EXTERNAL, explain, refusal

LARGE = 1 << 20
"""Bytes from which a weight is never copied here."""
Array = np.ndarray[Any, Any]
OWN = {**GUARDS, **INT8}
OF_SHAPES = frozenset(
    {
        "Cast",
        "CastLike",
        "Concat",
        "ConstantOfShape",
        "Equal",
        "Expand",
        "Gather",
        "Reshape",
        "Resize",
        "Shape",
        "Slice",
    }
    | {"Squeeze", "Where"}
)
"""Operators whose converters take Relax shapes as well as tensors."""


def import_graph(model: ir.Model) -> tuple[tvm.IRModule, dict[str, np.ndarray[Any, Any]], dict[str, Origin]]:
    """Import a canonical `model` whose names are identifiers.

    Returns the module, the weights its ``main`` uses in the order of its last parameters, and for each variable
    what it comes from.

    Raises:
        LoweringError: naming every node whose conversion failed, and TVM's reason.
    """
    keep_order()
    apart = _take_out_large(model)
    importer = _Importer(model, apart)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            module = importer.from_onnx(ir.to_proto(model).graph, model.opset_imports[""])  # pyright: ignore[reportArgumentType]
        except Exception as error:
            if importer.failures:
                raise refusal(importer.failures, model) from error
            whole = {f"the graph as a whole ({_first_line(error)})": [str(model.graph.name)]}
            raise LoweringError(explain(whole, model)) from error
    if importer.failures:
        raise refusal(importer.failures, model)
    module, params = detach_params(module)
    for binding in (binding for block in module["main"].body.blocks for binding in block.bindings):
        if isinstance(binding.value, relax.Var) and binding.value.name in importer.sources:  # the model's only output
            importer.sources[binding.var.name] = importer.sources[binding.value.name]
    arrays = [*apart.values(), *(param.numpy() for param in params.get("main", []))]
    function, weights = _drop_unused(module["main"], arrays)
    module = tvm.IRModule({**dict(module.functions_items()), module.get_global_var("main"): function})
    return module, weights, importer.sources


class _Importer(ONNXGraphImporter):
    """Records failures instead of stopping at the first one, and names variables after ONNX nodes.

    `failures`: operator and reason -> nodes. `sources`: variable -> what it comes from.
    """

    def __init__(self, model: ir.Model, apart: Mapping[str, Array]) -> None:
        super().__init__({}, {}, keep_params_in_input=True, sanitize=False)
        self._apart = apart
        self.failures: dict[str, list[ir.Node]] = {}
        self.sources: dict[str, Origin] = {}
        self._values = {value.name: value for value in model.graph.inputs}
        self._dims: dict[str, Any] = {}
        self._onnx_nodes = {node.name: node for node in model.graph.all_nodes()}

    def _parse_graph_input(self, graph: Any) -> None:
        """Remembers the variables of the inputs' open dimensions, by name; large weights are the last inputs."""
        super()._parse_graph_input(graph)
        inputs: dict[str, Any] = self._inputs
        for name, variable in inputs.items():
            value = self._values.get(name)
            if value is not None and value.shape is not None and variable.ty.shape is not None:
                self._dims |= {str(dim): size for dim, size in zip(value.shape, variable.ty.shape, strict=True)}
        for name, array in self._apart.items():
            shape: Any = list(array.shape)
            inputs[name] = self._nodes[name] = self._new_var(name, shape, array.dtype.name)

    def _check_for_unsupported_ops(self, graph: Any) -> None:
        """`refuse_unsupported` has looked at every node, and knows `EXTERNAL` too."""

    def _construct_nodes(self, graph: Any) -> None:
        """One node after the other: what TVM raises outside of converters has a name then.

        Operators that TVM knows for tensors only get shapes as tensors.
        """
        for node in graph.node:
            given = {name: self._nodes[name] for name in node.input if name}
            if node.op_type not in OF_SHAPES:
                self._nodes.update({name: self._tensor(x) for name, x in given.items() if _is_shape(x)})
            try:
                super()._construct_nodes(onnx.GraphProto(node=[node]))  # pyright: ignore[reportArgumentType]
            except Exception as error:
                self._fail(self._onnx_nodes[node.name], error, list(given.values()))
            self._nodes.update(given)

    def _fail(self, node: ir.Node, error: Exception, inputs: list[Any]) -> None:
        """Remember the failure, unless it is a consequence of an earlier one, and go on with placeholders."""
        if not (self.failures and any(map(_of_unknown_rank, inputs))):
            self.failures.setdefault(f"{node.op_type} ({_first_line(error)})", []).append(node)
        self._nodes.update({str(value.name): self._placeholder(value) for value in node.outputs if value.name})

    def _parse_graph_initializers(self, graph: Any) -> None:
        """Short integer vectors are axes and shapes: not all converters look for them among the weights."""
        super()._parse_graph_initializers(graph)
        for name, (_, tensor) in list(self._params.items()):
            array = tensor.numpy()
            if array.dtype == np.int64 and array.ndim <= 1 and array.size <= MAX_ELEMENTS:
                del self._params[name]
                self._nodes[name] = relax.const(array, "int64")  # else it becomes int32

    def _convert_operator(self, op_name: str, inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
        node = self._onnx_nodes[attrs["tvm_custom"]["name"]]
        result: Any = None
        if node.domain == "":
            inputs[:] = agreeing(self.bb, node, inputs)  # in place: a list that has None beyond its end
        if (node.domain, op_name) == EXTERNAL:
            result = _call_packed(node, list(map(self._tensor, inputs)))
        elif (node.domain, op_name) in OWN:
            result = OWN[node.domain, op_name](self.bb, node, list(map(self._tensor, inputs)))
        elif node.domain == "" and op_name in CONVERTERS:
            result = CONVERTERS[op_name](self.bb, node, list(inputs))
        if result is None:
            result = super()._convert_operator(op_name, inputs, attrs, opset)
        if isinstance(result, relax.Call):
            result = self.bb.emit(result, name_hint=str(node.name))
            self.sources[result.name] = origin(node)
        if len(node.outputs) == 1 and isinstance(result, relax.Tuple):  # BatchNormalization; TVM sees to it in
            result = result.fields[0]  # the main graph alone
        return self._shaped(result, node.outputs[0])

    def _tensor(self, value: Any) -> Any:
        """Sizes that are expressions, as a tensor."""
        if _is_shape(value):
            return self.bb.normalize(relax.op.shape_to_tensor(value))
        if not tvm.ir.is_prim_expr(value):
            return value
        tensor = self.bb.normalize(relax.op.shape_to_tensor(relax.ShapeExpr([value])))
        return self.bb.normalize(relax.op.reshape(tensor, relax.ShapeExpr([])))

    def _shaped(self, result: Any, value: ir.Value) -> Any:
        """`result` with the shape that ONNX tells, where the importer has lost it."""
        if value.shape is None or value.dtype is None or not isinstance(result, relax.Var | relax.Call):
            return result
        if not isinstance(result.ty, relax.TensorType) or result.ty.shape is not None:
            return result
        return self.bb.match_cast(result, relax.TensorType(self._sizes(value.shape), str(value.dtype.numpy())))  # pyright: ignore[reportArgumentType]

    def _sizes(self, shape: ir.Shape) -> list[Any]:
        """Sizes as Relax has them: where TVM loses a shape that ONNX tells, a variable for each dimension of a name."""
        return [
            dim if isinstance(dim, int) else self._dims.setdefault(str(dim), tirx.Var(str(dim), "int64"))
            for dim in shape
        ]

    def _placeholder(self, value: ir.Value) -> relax.Var:
        """What stands for the result of a failed node, so that the nodes after it are tried as well."""
        dtype = str(value.dtype.numpy()) if value.dtype is not None else "float32"
        static = value.shape is not None and value.shape.is_static()
        shape = list(value.shape.numpy()) if static and value.shape is not None else None
        return self._new_var(str(value.name), shape, dtype)  # pyright: ignore[reportArgumentType]


def _call_packed(node: ir.Node, inputs: list[Any]) -> relax.Expr:
    """The call an `EXTERNAL` node stands for; symbolic dimensions of its result are those of its first input."""
    first = node.inputs[0]
    if first is None or first.shape is None or any(v.shape is None or v.dtype is None for v in node.outputs):
        raise ValueError("the type of its output is not known")
    sizes = {str(dim): size for dim, size in zip(first.shape, inputs[0].ty.shape, strict=True)}
    results: list[relax.TensorType] = []
    for output in node.outputs:
        assert output.shape is not None
        assert output.dtype is not None
        shape = [dim if isinstance(dim, int) else sizes[str(dim)] for dim in output.shape]
        results.append(relax.TensorType(shape, str(output.dtype.numpy())))  # pyright: ignore[reportArgumentType]
    symbol = str(node.attributes.get_string("symbol"))
    return relax.call_dps_packed(symbol, relax.Tuple(list(inputs)), out_ty=results[0] if len(results) == 1 else results)


def _is_shape(value: Any) -> bool:
    return isinstance(value, relax.Expr) and isinstance(value.ty, relax.ShapeType)


def _of_unknown_rank(expression: Any) -> bool:
    return isinstance(expression, relax.Expr) and getattr(expression.ty, "ndim", 0) == -1


def _take_out_large(model: ir.Model) -> dict[str, Array]:
    """Take large initializers from `model`: protobuf and TVM would each hold one or two copies of them."""
    known = {name: value.const_value for name, value in model.graph.initializers.items()}
    arrays = {name: tensor.numpy() for name, tensor in known.items() if tensor is not None and tensor.nbytes >= LARGE}
    arrays = {name: array for name, array in arrays.items() if array.dtype.isbuiltin == 1}
    for name in arrays:
        del model.graph.initializers[name]
    return arrays


def _drop_unused(function: relax.Function, params: list[Array]) -> tuple[relax.Function, dict[str, Array]]:
    """Weights the importer turned into constants (axes, shapes) are no parameters any more."""
    used = {var.name for var in relax.analysis.free_vars(function.body)}
    inputs = list(function.params)[: len(function.params) - len(params)]
    kept = [(var, param) for var, param in zip(function.params[len(inputs) :], params, strict=True) if var.name in used]
    trimmed = relax.Function(
        [*inputs, *(var for var, _ in kept)],
        function.body,
        function.ret_ty,
        is_pure=function.is_pure,
        attrs=function.attrs,
    )
    return trimmed, {var.name: param for var, param in kept}


def _first_line(error: Exception) -> str:
    """The reason in TVM's message, without its stack trace and addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[-1] if lines else type(error).__name__
    line = re.sub(r"^.*?(Error|Check failed)[^:]*: ", "", line)
    return re.sub(r"ir\.Op\(.*name=\"([\w.]+)\".*", r"\1 refuses its inputs", line)[:200].rstrip(".")
