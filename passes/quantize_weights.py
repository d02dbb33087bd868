"""Weight-only quantization: weights and embedding tables are stored in few bits, activations stay float."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.errors import UsageError
from graphopt.graph import add_constant, constant_array, raise_opset, remove_unused
from graphopt.passes.quant.arithmetic import quantize_weight
from graphopt.passes.quant.insert import add_node, dequantize_constant, finish, replace_node
from graphopt.passes.quant.original import Original, remember
from graphopt.passes.quant.spec import Dtype, QuantSpec
from graphopt.passes.weights import (
    Weight,
    find_weight,
    input_axis,
    is_weighted,
    matches,
    output_axis,
    weight_array,
    weight_reader,
)

Array = np.ndarray[Any, Any]

SMALLEST = 1024
"""Elements below which a weight is left alone: it is no part of the file's size."""


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Stores weights and embedding tables in 8 or 4 bits, and computes in float.

    bits: 8, one scale per output channel or table row; 4, one per `block` neighbours along the summed axis, of the
        range with the least squared error.
    block: elements that share a scale; 32 unless given for 4 bits. A weight whose sums are shorter gets 8 bits.
    symmetric: zero is integer zero, as 8 bits have it by default; otherwise unsigned integers with a zero point, the
        default of 4 bits.
    float8: float8 e4m3 in place of int8.
    include, exclude: node names or operators, ``*`` allowed; Conv, ConvTranspose, Gemm, MatMul and Gather are
        included by default.

    Weights become DequantizeLinear of integers. In blocks, the axes of a convolution's window are one with its input
    channels, and a Reshape follows. A table in 8 bits is gathered as integers and then scaled, so that nothing but
    the rows asked for is touched. 4 bits and blocks need opset 21: the model is raised to it.
    """

    name: ClassVar[str] = "quantize-weights"
    preserves: ClassVar[Preserves] = LOSSY

    bits: Annotated[int, Field(ge=4, le=8, multiple_of=4)] = 8
    block: Annotated[int, Field(ge=2)] | None = None
    symmetric: bool | None = None
    float8: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.float8 and (self.bits != 8 or self.symmetric is False):
            raise UsageError("'quantize-weights': float8 has 8 bits and is symmetric.")

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Quantize in place. Facts: `quantized` weights, and their `bytes` before and after.

        Raises:
            ModelError: 4 bits or blocks are asked for, and the model can't be raised to opset 21.
        """
        report = Report()
        work: list[tuple[ir.Node, int, Callable[[], Array], QuantSpec]] = []
        for node in model.graph:
            if node.op_type != "Gather" and not is_weighted(node):
                continue
            found = self._find(node)
            if isinstance(found, str):
                report.skip(node.name, found)
            elif found is not None:
                work.append((node, found.index, weight_reader(found), self._spec(node, found)))
        if work:
            raise_opset(model, max(spec.opset for *_, spec in work))
        before = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        made: dict[tuple[Any, ...], ir.Value] = {}
        for node, index, read, spec in work:
            if node.op_type == "Gather" and spec.dtype in ("int8", "uint8") and spec.block is None:
                _gather_integers(model.graph, node, read(), spec)
            else:
                key = (node.inputs[index], node.op_type in ("Conv", "ConvTranspose", "Gather"), spec)
                if key not in made:
                    made[key] = _stored(model.graph, node, index, read, spec)
                node.replace_input_with(index, made[key])
            blocks = f", a scale per {spec.block}" if spec.block is not None else ""
            report.change(node.name, f"weights in {spec.dtype}{blocks}")
        remove_unused(model)
        after = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        report.facts |= {"quantized": len(work), "bytes": [before, after]}
        return report

    def _find(self, node: ir.Node) -> Weight | str | None:
        """The weight of `node`; else why it is left alone, None if it has none."""
        if self.include and not matches(node, self.include):
            return None
        if matches(node, self.exclude):
            return "excluded"
        if node.op_type == "Gather":
            table = node.inputs[0]
            array = constant_array(table)
            if table is None or array is None or array.ndim < 2 or node.attributes.get_int("axis", 0) != 0:
                return None
            weight = Weight(node, 0, table, tuple(range(array.ndim)))
        else:
            weight = find_weight(node)
            if weight is None:
                return "its weight is computed at run time"
            array = weight_array(weight)
            if array is None:
                return f"its weight {weight.root.name!r} comes through a Reshape: run fold-constants first"
        if array.dtype != np.float32:
            return None if node.op_type == "Gather" else f"its weight is {array.dtype}; float32 is quantized"
        if array.size < SMALLEST:
            return f"its weight has {array.size} elements, too few to matter"
        return weight if np.isfinite(array).all() else "its weight is not finite"

    def _spec(self, node: ir.Node, weight: Weight) -> QuantSpec:
        block = self.block or (32 if self.bits == 4 else None)
        table, shape = node.op_type == "Gather", weight_reader(weight)().shape
        summed = len(shape) - 1 if table else input_axis(weight)
        length = 0 if summed is None else math.prod(shape[1:]) if node.op_type == "Conv" else shape[summed]
        blocked = block is not None and node.op_type != "ConvTranspose" and length >= block
        bits = self.bits if blocked else 8
        symmetric = bits == 8 if self.symmetric is None else self.symmetric
        dtype: Dtype = "float8e4m3fn" if self.float8 else _INTEGERS[bits, symmetric]
        if blocked:
            return QuantSpec(dtype, symmetric, axis=summed, block=block, observer="minmax" if bits == 8 else "mse")
        return QuantSpec(dtype, symmetric, axis=0 if table else output_axis(weight), observer="minmax")


_INTEGERS: dict[tuple[int, bool], Dtype] = {
    (4, True): "int4",
    (4, False): "uint4",
    (8, True): "int8",
    (8, False): "uint8",
}


def _stored(graph: ir.Graph, node: ir.Node, index: int, read: Callable[[], Array], spec: QuantSpec) -> ir.Value:
    """The array as DequantizeLinear of constants before `node`; a filter's blocks run through its window as well."""
    array = read()
    shape = array.shape
    windowed = spec.block is not None and array.ndim > 2 and node.op_type == "Conv"
    if windowed:
        array = array.reshape(len(array), -1)
    flat = array.shape
    q, scale, zero_point = quantize_weight(array, spec)
    hint = str(node.inputs[index].name)  # pyright: ignore[reportOptionalMemberAccess]  # it is the weight
    inputs = [add_constant(graph, f"{hint}_quantized", q), add_constant(graph, f"{hint}_scale", scale)]
    if not spec.symmetric or spec.is_float:
        inputs.append(add_constant(graph, f"{hint}_zero_point", zero_point))
    dequantized = dequantize_constant(graph, node, inputs, hint, spec.axis, spec.block)
    remember(dequantized, Original(lambda: read().reshape(flat), spec))
    if not windowed:
        return dequantized
    reshape = ir.node("Reshape", [dequantized, add_constant(graph, f"{hint}_shape", np.array(shape, np.int64))])
    finish(graph, reshape, f"{hint}_window", dequantized, ir.Shape(shape), [node])
    graph.insert_before(node, reshape)
    return reshape.outputs[0]


def _gather_integers(graph: ir.Graph, node: ir.Node, table: Array, spec: QuantSpec) -> None:
    """Replace Gather(table) by ``(Gather(q) - zero_point) * Gather(scale)``, with a scale per row."""
    q, scale, zero_point = quantize_weight(table, spec)
    column = [len(table)] + [1] * (table.ndim - 1)
    hint, float32 = str(node.inputs[0].name), ir.DataType.FLOAT  # pyright: ignore[reportOptionalMemberAccess]

    def rows(array: Array, name: str) -> ir.Value:
        constant = add_constant(graph, f"{hint}_{name}", array)
        dtype = ir.DataType.from_numpy(array.dtype)
        return add_node(graph, node, "Gather", [constant, node.inputs[1]], f"{hint}_{name}_rows", dtype, axis=0)

    def floats(array: Array, name: str) -> ir.Value:
        cast = {"to": int(float32)}
        return add_node(graph, node, "Cast", [rows(array, name)], f"{hint}_{name}_float", float32, **cast)

    values = floats(q, "quantized")
    if not spec.symmetric:
        zeros = floats(zero_point.reshape(column), "zero_point")
        values = add_node(graph, node, "Sub", [values, zeros], f"{hint}_centred", float32)
    scales = rows(scale.reshape(column), "scale")
    replace_node(graph, node, add_node(graph, node, "Mul", [values, scales], f"{hint}_scaled", float32))
