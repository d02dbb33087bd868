"""Operators with a kernel of their own, whatever stands around them: which file plans which."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphopt.targets.llvm.plan import batched, gathers, norms, phases, recurrent, reductions, resample, rms, softmaxes
from graphopt.targets.llvm.plan.kernels import Kernels
from graphopt.targets.llvm.plan.layout import Twins

Emit = Callable[[ir.Node, Kernels, Twins], bool]

EMIT: dict[str, Emit] = {
    **dict.fromkeys(reductions.OPS, reductions.emit),
    **dict.fromkeys(("Softmax", "LogSoftmax"), softmaxes.emit),
    **dict.fromkeys(("Resize", "Pad"), resample.emit),
    "Gather": gathers.emit,
    "MatMul": batched.emit,
}
OWN: dict[tuple[str, str], Emit] = {kind.OPERATOR: kind.emit for kind in (norms, phases, recurrent, rms)}
"""Operators that the plan itself puts in for others."""


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute `node` by a kernel if there is one; says whether."""
    planned = OWN.get((node.domain, node.op_type))
    if planned is not None:
        return planned(node, kernels, twins)
    planned = EMIT.get(node.op_type)
    return node.domain == "" and planned is not None and planned(node, kernels, twins)
