"""`remove-unused`: what no output depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from onnx_ir.passes import common
from pydantic.dataclasses import dataclass

from graphopt.base import EXACT, Context, Pass, Preserves, Report
from graphopt.graph import remove_unused

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class RemoveUnused(Pass):
    """Remove nodes, initializers, functions and opset imports that no output of the model depends on."""

    name: ClassVar[str] = "remove-unused"
    preserves: ClassVar[Preserves] = EXACT

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Inputs and outputs of the model stay as they are, read or not."""
        report = Report()
        nodes = [node for root in _roots(model) for node in root.all_nodes()]
        weights = list(model.graph.initializers)
        remove_unused(model)
        common.RemoveUnusedFunctionsPass()(model)
        common.RemoveUnusedOpsetsPass()(model)
        for node in nodes:
            if node.graph is None:
                report.change(node.name, f"removed {node.op_type}, which nobody reads")
        for name in weights:
            if name not in model.graph.initializers:
                report.change(name, "removed an initializer that nobody reads")
        return report


def _roots(model: ir.Model) -> list[ir.Graph]:
    return [model.graph, *(function.graph for function in model.functions.values())]
