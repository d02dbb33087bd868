"""Five passes that are right on most of a model and wrong on one kind of place: what bisect and reduce look for."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

import graphopt
from graphopt.graph import add_constant, constant_array

if TYPE_CHECKING:
    from collections.abc import Iterator


def pairs(model: ir.Model, first: str, second: str) -> Iterator[tuple[ir.Node, ir.Node]]:
    """(a, b) where b reads a's result first."""
    for node in list(model.graph):
        a = node.inputs[0].producer() if node.op_type == second and node.inputs else None
        if a is not None and a.op_type == first:
            yield a, node


class Planted(graphopt.Pass):
    """What all five promise."""

    preserves: ClassVar[graphopt.Preserves] = graphopt.tolerance(rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class WrongAxis(Planted):
    """Two Transposes become one; their permutations are composed in the wrong order."""

    name: ClassVar[str] = "wrong-axis"

    def apply(self, model: ir.Model, context: graphopt.Context) -> graphopt.Report:
        report = graphopt.Report()
        for a, b in pairs(model, "Transpose", "Transpose"):
            p, q = (list(n.attributes["perm"].as_ints()) for n in (a, b))
            perm = [q[k] for k in p]  # right: p[k] for k in q
            new = ir.node("Transpose", [a.inputs[0]], {"perm": perm})
            ir.convenience.replace_nodes_and_values(model.graph, b, [b], [new], b.outputs, new.outputs)
            if not a.outputs[0].uses():
                model.graph.remove(a, safe=True)
            report.change(b.name, f"took over '{a.name}'")
        return report


def scale_weight(model: ir.Model, conv: ir.Node, factor: np.ndarray) -> None:
    w = constant_array(conv.inputs[1])
    conv.replace_input_with(1, add_constant(model.graph, f"{conv.name}_w", (w * factor).astype(np.float32)))


def drop(model: ir.Model, node: ir.Node, by: ir.Value) -> None:
    node.outputs[0].replace_all_uses_with(by)
    model.graph.remove(node, safe=True)


@dataclass(frozen=True)
class DroppedBias(Planted):
    """Conv then Mul by a number: the number goes into the weights, and a bias stays as it was."""

    name: ClassVar[str] = "dropped-bias"

    def apply(self, model: ir.Model, context: graphopt.Context) -> graphopt.Report:
        report = graphopt.Report()
        for conv, mul in pairs(model, "Conv", "Mul"):
            factor = constant_array(mul.inputs[1])
            if (
                factor is None
                or factor.size != 1
                or len(conv.outputs[0].uses()) != 1
                or mul.outputs[0].is_graph_output()
            ):
                continue
            scale_weight(model, conv, factor)  # and the bias?
            drop(model, mul, conv.outputs[0])
            report.change(mul.name, f"into '{conv.name}'")
        return report


@dataclass(frozen=True)
class SharedValue(Planted):
    """As `DroppedBias`, with the bias; but whoever else reads the Conv is forgotten."""

    name: ClassVar[str] = "shared-value"

    def apply(self, model: ir.Model, context: graphopt.Context) -> graphopt.Report:
        report = graphopt.Report()
        for conv, mul in pairs(model, "Conv", "Mul"):
            factor = constant_array(mul.inputs[1])
            if factor is None or factor.size != 1 or mul.outputs[0].is_graph_output():
                continue
            scale_weight(model, conv, factor)
            if len(conv.inputs) > 2:
                bias = (constant_array(conv.inputs[2]) * factor).astype(np.float32)
                conv.replace_input_with(2, add_constant(model.graph, f"{conv.name}_b", bias))
            drop(model, mul, conv.outputs[0])
            report.change(mul.name, f"into '{conv.name}'")
        return report


@dataclass(frozen=True)
class WrongEpsilon(Planted):
    """BatchNormalization as Mul and Add, with the default epsilon whatever the node says."""

    name: ClassVar[str] = "wrong-epsilon"

    def apply(self, model: ir.Model, context: graphopt.Context) -> graphopt.Report:
        report = graphopt.Report()
        for node in list(model.graph):
            if node.op_type != "BatchNormalization":
                continue
            g, b, m, v = (constant_array(x) for x in node.inputs[1:])
            s = g / np.sqrt(v + np.float32(1e-5))
            scale = add_constant(model.graph, f"{node.name}_s", s.reshape(1, -1, 1, 1))
            shift = add_constant(model.graph, f"{node.name}_t", (b - m * s).reshape(1, -1, 1, 1))
            mul = ir.node("Mul", [node.inputs[0], scale])
            add = ir.node("Add", [mul.outputs[0], shift])
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [mul, add], node.outputs, add.outputs)
            report.change(node.name, "as Mul and Add")
        return report


@dataclass(frozen=True)
class CapturedName(Planted):
    """Conv then Add of a constant: the constant becomes the bias, looked up by the beginning of its name."""

    name: ClassVar[str] = "captured-name"

    def apply(self, model: ir.Model, context: graphopt.Context) -> graphopt.Report:
        report = graphopt.Report()
        for conv, add in pairs(model, "Conv", "Add"):
            if constant_array(add.inputs[1]) is None or len(conv.inputs) > 2 or add.outputs[0].is_graph_output():
                continue
            stem = add.inputs[1].name
            found = next(
                v for name, v in sorted(model.graph.initializers.items(), reverse=True) if name.startswith(stem)
            )
            bias = add_constant(model.graph, f"{conv.name}.bias", constant_array(found).reshape(-1))
            conv.append_input(bias) if hasattr(conv, "append_input") else conv.resize_inputs(3)
            conv.replace_input_with(2, bias)
            drop(model, add, conv.outputs[0])
            report.change(add.name, f"into '{conv.name}'")
        return report
