"""From ONNX to Relax as the GPU wants it: float32 sums, integers, rounded operands, channels last."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from graphopt.targets.cuda.lowering.integer import to_integers
from graphopt.targets.cuda.lowering.integer.add_borders import add_borders
from graphopt.targets.cuda.lowering.integer.along_sums import along_sums
from graphopt.targets.cuda.lowering.integer.stored import store_integers
from graphopt.targets.cuda.lowering.layout import channels_last
from graphopt.targets.cuda.lowering.rounded import read_bfloat16
from graphopt.targets.lowering import Lowered, lower
from graphopt.targets.lowering.decompose.halves import PRODUCTS, SUMMING, sum_in_float32
from graphopt.targets.lowering.rounding import round_in_float32

if TYPE_CHECKING:
    import onnx_ir as ir


def lower_for_gpu(model: ir.Model) -> tuple[Lowered, dict[str, str]]:
    """`model` lowered, and for each product of a quantized one whether it is computed in int8 or float32.

    Raises:
        LoweringError: as `graphopt.targets.lowering.lower` does.
    """
    integer: dict[str, str] = {}

    def prepare(canonical: ir.Model) -> None:
        sum_in_float32(canonical, SUMMING - PRODUCTS)  # products: `half`, which keeps their operands for tensor cores
        integer.update(to_integers(canonical))

    lowered = read_bfloat16(lower(model, prepare))
    lowered = dataclasses.replace(lowered, module=round_in_float32(lowered.module))
    lowered = along_sums(add_borders(channels_last(lowered)))
    if integer:
        lowered = dataclasses.replace(lowered, module=store_integers(lowered.module))
    return lowered, integer
