"""`convert-bfloat16`: products of operands rounded to bfloat16, summed in float32, with weights stored in 16 bits."""

from __future__ import annotations

from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from graphopt.base import Context, Pass, Preserves, Report, tolerance
from graphopt.graph import add_constant, constant_array, remove_unused
from graphopt.passes.small_floats import PRODUCTS, SINGLE, cast, float32_operands, quantized
from graphopt.passes.weights import matches

BRAIN = ir.DataType.BFLOAT16
MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
LARGEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)


@dataclass(frozen=True)
class ConvertBfloat16(Pass):
    """Rounds what convolutions and matrix products multiply to bfloat16; all else, their sums too, stays float32.

    exclude: node names or operators that read what they did, ``*`` allowed.

    Constants are stored as bfloat16, half as large. What is computed is cast to bfloat16 and back, which gives what the
    tensor cores of a GPU compute (Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training): the cuda
    target leaves out the way back. onnxruntime's CPU provider has no products of bfloat16, and runs those of the casts.

    Whatever else reads such a value, as a residual does, reads it rounded too, so that it need not be stored twice.
    bfloat16 has float32's range, with 8 significant bits: nothing overflows, and no calibration data is asked for.
    Biases are not rounded, and what belongs to a quantized model is left as it is.

    Of 18 networks the outputs moved by at most 6 % of the largest; those of two with steep sigmoids by 18 and 28 %.
    """

    name: ClassVar[str] = "convert-bfloat16"
    preserves: ClassVar[Preserves] = tolerance(rtol=0.5, atol=1e-2)

    exclude: tuple[str, ...] = ()

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Edit in place. Facts: `products`, the number of nodes; `rounded`, of values that are computed."""
        report, graph = Report(), model.graph
        readers: dict[ir.Value, ir.Node] = {}
        for node in graph:
            read = float32_operands(node, PRODUCTS)
            operands = [_moved(value) for value in node.inputs[:2] if value in read]
            operands = [value for value in operands if not _is_rounded(value)]
            if not operands:
                continue
            reason = "excluded" if matches(node, self.exclude) else quantized(read) or _too_large(operands)
            if reason is not None:
                report.skip(node.name, reason)
                continue
            readers |= {value: node for value in operands if value not in readers}
            report.change(node.name, f"{node.op_type} of bfloat16")
        report.facts |= {"products": len(report.changes), "rounded": sum(constant_array(v) is None for v in readers)}
        for value, node in readers.items():
            uses = [(reader, index) for reader, index in value.uses() if not self._stays(reader)]
            rounded = _rounded(graph, value, node)
            for reader, index in uses:
                reader.replace_input_with(index, rounded)
        remove_unused(model)
        return report

    def _stays(self, reader: ir.Node) -> bool:
        return matches(reader, self.exclude) or reader.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")


def _moved(value: ir.Value) -> ir.Value:
    """What `value` is a rearrangement of: rounded there, it is stored in 16 bits before it is moved."""
    producer = value.producer()
    moves = producer is not None and producer.op_type in MOVES and producer.domain in ("", "ai.onnx")
    source = producer.inputs[0] if producer is not None and moves else None
    return value if source is None else _moved(source)


def _is_rounded(value: ir.Value) -> bool:
    producer = value.producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
    return source is not None and source.dtype == BRAIN


def _too_large(operands: list[ir.Value]) -> str | None:
    """Between bfloat16's largest number and float32's is little, but rounding it gives infinity."""
    for value in operands:
        array = constant_array(value)
        if array is not None and (np.abs(array[np.isfinite(array)]) > LARGEST).any():
            return f"its constant {value.name!r} is beyond bfloat16's {LARGEST:.5g}"
    return None


def _rounded(graph: ir.Graph, value: ir.Value, reader: ir.Node) -> ir.Value:
    """`value` rounded to bfloat16, as float32: what stands in 16 bits is cast once, where all readers find it."""
    array = constant_array(value)
    if array is None:
        return cast(graph, cast(graph, value, BRAIN), SINGLE)
    return cast(graph, add_constant(graph, f"{value.name}_bfloat16", array.astype(ml_dtypes.bfloat16)), SINGLE, reader)
