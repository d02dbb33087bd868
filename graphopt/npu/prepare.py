"""A model as the NPU's compiler wants it: sizes fixed, BatchNorms folded, and int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.errors import UsageError
from graphopt.graph import bind_dims

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from graphopt.base import Pass


def fix_sizes(model: ir.Model) -> list[str]:
    """Bind, in place, an open batch (the first dimension of an input) to 1; returns the names that were bound.

    Raises:
        UsageError: another dimension of an input is open.
    """
    sizes = [(value.name, axis, d) for value in model.graph.inputs for axis, d in enumerate(value.shape or ())]
    opened = [(name, axis, size.value) for name, axis, size in sizes if not isinstance(size, int)]
    batch = {dim for _, axis, dim in opened if axis == 0 and dim is not None}
    others = [f"{dim or f'dimension {axis}'} of {name}" for name, axis, dim in opened if dim not in batch]
    if others:
        raise UsageError(f"an NPU needs fixed sizes, and {', '.join(others)} is open: give --dim NAME=SIZE.")
    bind_dims(model, dict.fromkeys(batch, 1))
    return sorted(batch)


def folded(model: ir.Model) -> ir.Model:
    """A copy after preset O2: cleaned up, BatchNorms folded, still float."""
    from graphopt.pipeline import preset

    return _run(model, preset("O2"))


def quantized(model: ir.Model) -> ir.Model:
    """A copy in int8: Q/DQ pairs are kept; a float model is folded and gets pairs of made-up scales."""
    from graphopt.passes.quant.assumed import AssumeInt8
    from graphopt.pipeline import preset

    if any(node.op_type == "DequantizeLinear" for node in model.graph):
        return model.clone()
    return _run(model, [*preset("O2"), AssumeInt8(activations="int8", target="npu")])


def _run(model: ir.Model, passes: Sequence[Pass]) -> ir.Model:
    from graphopt.pipeline import run

    return run(model, passes).model
