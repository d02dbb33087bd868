"""From ONNX to Relax as the GPU wants it: quantized regions in integers, convolutions channels last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.targets.cuda.integer import to_integers
from graphopt.targets.cuda.layout import channels_last
from graphopt.targets.lowering import Lowered, lower

if TYPE_CHECKING:
    import onnx_ir as ir


def lower_for_gpu(model: ir.Model) -> tuple[Lowered, dict[str, str]]:
    """`model` lowered, and for each product of a quantized one whether it is computed in int8 or float32.

    Raises:
        LoweringError: as `graphopt.targets.lowering.lower` does.
    """
    integer: dict[str, str] = {}

    def onto_integers(canonical: ir.Model) -> None:
        integer.update(to_integers(canonical))

    lowered = channels_last(lower(model, onto_integers))
    return lowered, integer
