"""`fold-batch-norm`: BatchNormalization into the weights around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from graphopt.base import Context, Pass, Preserves, Report, tolerance
from graphopt.passes.batch_norm.affine import Affine
from graphopt.passes.batch_norm.after import fold_after
from graphopt.passes.batch_norm.before import fold_before
from graphopt.passes.batch_norm.plan import EPSILON, Plan, Scope, insert_batch_norm
from graphopt.passes.batch_norm.reading import Left, constant, is_onnx, label
from graphopt.passes.batch_norm.trailing import join_trailing
from graphopt.passes.batch_norm.weights import rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    import onnx_ir as ir

    Array = np.ndarray[Any, Any]


def fold_batch_norm(model: ir.Model) -> Report:
    """Fold every BatchNormalization of `model` that a neighbour can absorb, in place; report each one left.

    In inference it is ``y = s·x + t`` per channel, with ``s = γ/√(σ²+ε)`` and ``t = β - μ·s``. In this order:

    1. constant Add, Sub, Mul, Div behind it that are one map per channel become part of it;
    2. towards the inputs: Conv, ConvTranspose, Gemm, MatMul or an earlier BatchNormalization absorb s and t,
       through Identity, Transpose, pools, views, constant operands, sums, and all pieces of a Concat
       (one piece may keep a BatchNormalization of its own);
    3. else towards the outputs: all readers absorb them, through the same nodes, unless they pad with zeros.

    Weights are computed in float64 and rounded once. A weight that other nodes read too is copied. Linear in the
    number of nodes.
    """
    report = Report()
    scopes = [Scope(model.graph), *(Scope(f.graph, is_function=True) for f in model.functions.values())]
    for scope in scopes:
        found = [node for node in scope.root.all_nodes() if is_onnx(node, "BatchNormalization")]
        for node in found:
            _join(scope, node, report)
        why_not_before = _sweep(scope, found, fold_before, report)
        why_not_after = _sweep(scope, reversed(why_not_before), fold_after, report)
        for node in why_not_before:
            if node in why_not_after:
                report.skip(node.name, _reason(why_not_before[node], why_not_after[node]))
        report.facts["folded"] = report.facts.get("folded", 0) + len(found) - len(why_not_after)
    report.facts["left"] = len(report.skipped)
    return report


def _join(scope: Scope, node: ir.Node, report: Report) -> None:
    try:
        plan, joined = join_trailing(node)
    except Left:
        return
    plan.apply(scope, node)
    report.change(node.name, f"took over {joined}")


def _sweep(
    scope: Scope, nodes: Iterable[ir.Node], find: Callable[[ir.Node], Plan], report: Report
) -> dict[ir.Node, str]:
    """Fold each of `nodes` for which `find` finds a plan; returns why the others stay."""
    stay: dict[ir.Node, str] = {}
    for node in nodes:
        try:
            plan = find(node)
            pieces = [(stuck, _parameters(node, stuck.edge.affine)) for stuck in plan.stuck]
        except Left as left:
            stay[node] = str(left)
            continue
        plan.apply(scope, node)
        report.change(node.name, _action(plan))
        for stuck, arrays in pieces:
            report.skip(insert_batch_norm(scope, stuck.edge, node, arrays).name, stuck.reason)
    return stay


def _action(plan: Plan) -> str:
    action = "folded into " + ", ".join(label(node) for node in plan.into)
    return action if not plan.copies else f"{action}; copied {', '.join(plan.copies)}, which other nodes read too"


def _reason(before: str, after: str) -> str:
    return before if before == after else f"before it: {before}; after it: {after}"


def _parameters(node: ir.Node, affine: Affine) -> list[Array]:
    """γ, β, μ, σ² of a BatchNormalization that is `affine`, in the types of `node`'s; ε is `EPSILON`."""
    dtypes = [constant(node, i, "parameter").dtype for i in range(1, 5)]
    variance = np.full(affine.channels, 1 - EPSILON).astype(dtypes[3])
    gamma = affine.scale * np.sqrt(variance.astype(np.float64) + EPSILON)
    return [
        rounded(gamma, dtypes[0], "scale"),
        rounded(affine.shift, dtypes[1], "bias"),
        np.zeros(affine.channels, dtypes[2]),
        variance,
    ]


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before or after it.

    The new weights are exact up to one rounding. Outputs of a deep float32 network move by about 1e-6 of their
    largest value, behind a steep sigmoid by 1e-5: hence the tolerance.
    """

    name: ClassVar[str] = "fold-batch-norm"
    preserves: ClassVar[Preserves] = tolerance(rtol=1e-4, atol=1e-6)

    def apply(self, model: ir.Model, context: Context) -> Report:
        """See `fold_batch_norm`."""
        return fold_batch_norm(model)
