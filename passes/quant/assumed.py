"""int8 without data: every activation is taken to range over [-1, 1]. For estimates of cost, never for results."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from graphopt.base import Context
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.passes.quant.observers import Statistics
from graphopt.passes.quant.placement import Placement


@dataclass(frozen=True)
class AssumeInt8(InsertQdq):
    """`InsertQdq` whose calibration is made up: what it quantizes is right, the scales mean nothing."""

    name: ClassVar[str] = "assume-int8"

    def _statistics(self, model: ir.Model, placement: Placement, context: Context) -> dict[ir.Value, Statistics]:
        assumed = Statistics()
        assumed.update(np.array([-1.0, 1.0], np.float32))
        return dict.fromkeys(placement.scales.values(), assumed)
