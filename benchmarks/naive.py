"""The textbook's fixed point: ``round(W 2^p)``, one p for the whole model, no calibration."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.graph import add_constant, constant_array, remove_unused
from graphopt.passes.weights import find_weight, is_weighted


@dataclass(frozen=True)
class Rounded(Pass):
    """Weights become ``round(W 2^p) 2^-p`` in int8, with the largest p that no weight of the model overflows with."""

    name: ClassVar[str] = "rounded"
    preserves: ClassVar[Preserves] = LOSSY

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Facts: `p`."""
        roots = dict.fromkeys(
            found.root for node in model.graph if is_weighted(node) and (found := find_weight(node)) is not None
        )
        arrays = {value: array for value in roots if (array := constant_array(value)) is not None}
        largest = max((float(np.abs(array).max()) for array in arrays.values()), default=1.0)
        p = int(np.floor(np.log2(127 / largest)))
        scale = add_constant(model.graph, "two_to_minus_p", np.array(2.0**-p, np.float32))
        report = Report(facts={"p": p})
        for value, array in arrays.items():
            whole = add_constant(model.graph, f"{value.name}_int8", np.round(array * 2.0**p).astype(np.int8))
            node = ir.node("DequantizeLinear", [whole, scale], name=f"{value.name}_dequantized")
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            node.outputs[0].name = f"{value.name}_float"
            first = next(iter(value.uses()))[0]
            for reader, index in list(value.uses()):
                reader.replace_input_with(index, node.outputs[0])
            model.graph.insert_before(first, node)
            report.change(str(first.name), f"its weight is round(W 2^{p})")
        remove_unused(model)
        return report
