"""A plugin file of small passes, good and broken, that the tests load by path."""

from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

import graphopt


@dataclass(frozen=True)
class ScaleWeights(graphopt.Pass):
    """Multiply every initializer by a factor: exact only when the factor is 1."""

    name: ClassVar[str] = "scale-weights"
    preserves: ClassVar[graphopt.Preserves] = graphopt.EXACT
    factor: float = 1.0

    def apply(self, model: ir.Model, context: graphopt.Context) -> graphopt.Report:
        report = graphopt.Report()
        for name, value in model.graph.initializers.items():
            if value.const_value.dtype == ir.DataType.FLOAT:
                value.const_value = ir.tensor(value.const_value.numpy() * np.float32(self.factor), name=name)
                report.change(name, f"scaled by {self.factor}")
        return report


@dataclass(frozen=True)
class Crash(graphopt.Pass):
    """Raise an exception that is nobody's fault but its own."""

    name: ClassVar[str] = "crash"
    preserves: ClassVar[graphopt.Preserves] = graphopt.EXACT

    def apply(self, model: ir.Model, context: graphopt.Context) -> graphopt.Report:
        raise KeyError("no such thing")


@dataclass(frozen=True)
class DropInput(graphopt.Pass):
    """Cut the first node off its data input."""

    name: ClassVar[str] = "drop-input"
    preserves: ClassVar[graphopt.Preserves] = graphopt.LOSSY

    def apply(self, model: ir.Model, context: graphopt.Context) -> graphopt.Report:
        report = graphopt.Report()
        node = model.graph[0]
        node.replace_input_with(0, None)
        report.change(node.name, "cut off")
        return report


@dataclass(frozen=True)
class RenameOutput(graphopt.Pass):
    """Change the name the model's caller uses."""

    name: ClassVar[str] = "rename-output"
    preserves: ClassVar[graphopt.Preserves] = graphopt.EXACT

    def apply(self, model: ir.Model, context: graphopt.Context) -> graphopt.Report:
        model.graph.outputs[0].name = "renamed"
        return graphopt.Report()


@dataclass(frozen=True)
class Boast(graphopt.Pass):
    """Claim changes without making any."""

    name: ClassVar[str] = "boast"
    preserves: ClassVar[graphopt.Preserves] = graphopt.EXACT

    def apply(self, model: ir.Model, context: graphopt.Context) -> graphopt.Report:
        report = graphopt.Report()
        report.change("everything", "improved")
        return report


@dataclass(frozen=True)
class ReluToClip(graphopt.Pass):
    """Replace Relu by Max(x, 0) with new nodes and names: equal results."""

    name: ClassVar[str] = "relu-to-max"
    preserves: ClassVar[graphopt.Preserves] = graphopt.EXACT

    def apply(self, model: ir.Model, context: graphopt.Context) -> graphopt.Report:
        from graphopt.graph import add_constant

        report = graphopt.Report()
        for node in list(model.graph):
            if node.op_type == "Relu":
                zero = add_constant(model.graph, "zero", np.zeros((), np.float32))
                new = ir.node("Max", [node.inputs[0], zero])
                ir.convenience.replace_nodes_and_values(model.graph, node, [node], [new], node.outputs, new.outputs)
                report.change(node.name, "Relu -> Max")
        return report
