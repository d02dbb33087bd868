"""int8 without data: every activation is taken to range over [-1, 1]. For estimates of cost, never for results."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from graphopt.base import Context, Report
from graphopt.graph import used_once
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.passes.quant.arithmetic import scale_and_zero_point
from graphopt.passes.quant.insert import add_scale, insert_pair
from graphopt.passes.quant.observers import Statistics
from graphopt.passes.quant.placement import Placement
from graphopt.passes.weights import is_weighted


@dataclass(frozen=True)
class AssumeInt8(InsertQdq):
    """`InsertQdq` whose calibration is made up: what it quantizes is right, the scales mean nothing.

    The results of the last weighted nodes are quantized as well, where float operators follow them.
    """

    name: ClassVar[str] = "assume-int8"

    def apply(self, model: ir.Model, context: Context) -> Report:
        """As `InsertQdq.apply`, without data."""
        report = super().apply(model, context)
        scale, zero_point = scale_and_zero_point(-1.0, 1.0, self._spec())
        for value in [_result(node) for node in model.graph if is_weighted(node)]:
            readers = {use.node for use in value.uses()}
            if readers and all(reader.op_type != "QuantizeLinear" for reader in readers):
                insert_pair(model.graph, value, add_scale(model.graph, str(value.name), scale, zero_point), readers)
        return report

    def _statistics(self, model: ir.Model, placement: Placement, context: Context) -> dict[ir.Value, Statistics]:
        assumed = Statistics()
        assumed.update(np.array([-1.0, 1.0], np.float32))
        return dict.fromkeys(placement.scales.values(), assumed)


def _result(node: ir.Node) -> ir.Value:
    """What a weighted node computes, the Relu or Clip behind it included."""
    value = node.outputs[0]
    while used_once(value):
        reader = next(iter(value.uses())).node
        if reader.op_type not in ("Relu", "Clip"):
            break
        value = reader.outputs[0]
    return value
