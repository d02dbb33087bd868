"""Static int8 quantization in the QDQ form: calibrated activations, per-channel weights, int32 biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import LOSSY, Context, Pass, Preserves, Report
from graphopt.data import Batches
from graphopt.errors import DataError, PassError
from graphopt.graph import raise_opset, remove_unused
from graphopt.passes.quant.arithmetic import scale_and_zero_point
from graphopt.passes.quant.calibrate import calibrate
from graphopt.passes.quant.insert import Scale, Weights, add_scale, insert_pair, int32_bias, quantize_bias_of
from graphopt.passes.quant.observers import Statistics, propose_range
from graphopt.passes.quant.placement import Placement, concatenated, is_float_activation, operands, place
from graphopt.passes.quant.rules import Rules, load_rules
from graphopt.passes.quant.saved import load_statistics
from graphopt.passes.quant.spec import Observer, QuantSpec, weight_bits_for
from graphopt.passes.weights import find_weight, is_weighted, matches, weight_array

LOPSIDED = 64.0
"""A Concat whose branches' peaks differ by more than this leaves the smaller one fewer than two of eight bits."""


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Inserts calibrated QuantizeLinear/DequantizeLinear pairs for static int8 execution.

    activations: "uint8" and "uint16" asymmetric, the others symmetric; one scale per tensor.
        float8 is the weights' type as well, and 16 bits need opset 21: the model is raised to it.
    weight_bits: 8, or fewer for head room. By default 8, but 7 where it is known that the model is compiled for x86
        without VNNI: with these the fastest kernels can't saturate.
    observer: how activation ranges follow from calibration: "minmax", "moving-average", "percentile", "entropy" or
        "mse"; see `graphopt.passes.quant.observers`.
    power_of_two: scales are powers of two.
    per_channel: False gives each weight one scale in place of one per output channel.
    target: whose placement rules: "llvm", "onnxruntime", "npu", or a TOML file as in `graphopt.passes.quant.rules`.
    statistics: a file of `graphopt calibrate`, in place of calibration data.
    include, exclude: node names or operators, ``*`` allowed; all Conv, ConvTranspose, Gemm, MatMul by default.
        Another node that is excluded passes no integers on: with ``exclude=[Add]`` residual sums stay float.

    Weights are symmetric int8; a constant bias becomes int32 at ``s_x * s_w``. Which other nodes then work on
    integers is told in `graphopt.passes.quant.placement`. Graph outputs stay float.
    """

    name: ClassVar[str] = "insert-qdq"
    preserves: ClassVar[Preserves] = LOSSY

    activations: Literal["uint8", "int8", "uint16", "int16", "float8e4m3fn", "float8e5m2"] = "uint8"
    weight_bits: Annotated[int, Field(ge=2, le=8)] | None = None
    observer: Observer = "mse"
    power_of_two: bool = False
    per_channel: bool = True
    target: str = "llvm"
    statistics: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def apply(self, model: ir.Model, context: Context) -> Report:
        """Calibrate and insert. Facts: `ranges` by value name, `quantized` and `weighted` node counts, `weight_bits`.

        Raises:
            DataError: no calibration data, or it does not fit the model.
            PassError: the model's opset is below 13, which has no per-channel DequantizeLinear.
            ModelError: the model can't be raised to the opset that 16 bits or float8 need.
        """
        if model.graph.opset_imports.get("", 13) < 13:
            raise PassError("'insert-qdq' needs opset 13 or newer: load the model through graphopt.graph.load.")
        rules = load_rules(self.target)
        report = Report()
        chosen = _choose(model, self.include, self.exclude, rules, report)
        placement = place(model.graph, frozenset(chosen), rules, self.exclude)
        statistics = self._statistics(model, placement, context) if chosen else {}
        for node in list(chosen):
            reason = _unfit(node, placement, statistics, rules)
            if reason is not None:
                report.skip(node.name, reason)
                chosen.remove(node)
        bits = weight_bits_for(self.weight_bits, context)
        placement = place(model.graph, frozenset(chosen), rules, self.exclude)
        self._insert(model.graph, placement, chosen, statistics, self._weight_spec(bits), report)
        if chosen:
            raise_opset(model, self._spec().opset)
        remove_unused(model)
        report.facts["quantized"] = len(chosen)
        report.facts["weight_bits"] = bits
        report.facts["weighted"] = len(chosen) + len({s.node for s in report.skipped if s.reason != BIAS_CLIPS})
        return report

    def gather(self, model: ir.Model, batches: Batches) -> dict[ir.Value, Statistics]:
        """The statistics that `apply` would want of `model`, which is left as it is."""
        rules = load_rules(self.target)
        chosen = _choose(model, self.include, self.exclude, rules, Report())
        placement = place(model.graph, frozenset(chosen), rules, self.exclude)
        return calibrate(model, list(dict.fromkeys(placement.scales.values())), batches)

    def _statistics(self, model: ir.Model, placement: Placement, context: Context) -> dict[ir.Value, Statistics]:
        values = list(dict.fromkeys(placement.scales.values()))
        if self.statistics is None:
            return calibrate(model, values, context.needs_calibration(self.name))
        saved = load_statistics(self.statistics, model)
        missing = [str(value.name) for value in values if value.name not in saved]
        if missing:
            raise DataError(
                f"the statistics {self.statistics} lack {', '.join(missing[:3])}: they were gathered with other "
                "options of insert-qdq. Run graphopt calibrate with this pipeline."
            )
        return {value: saved[str(value.name)] for value in values}

    def _spec(self) -> QuantSpec:
        symmetric = not self.activations.startswith("uint")
        return QuantSpec(self.activations, symmetric, power_of_two=self.power_of_two, observer=self.observer)

    def _weight_spec(self, bits: int) -> QuantSpec:
        if self._spec().is_float:
            return QuantSpec(self.activations, True, power_of_two=self.power_of_two, observer="minmax")
        return QuantSpec("int8", True, bits, self.power_of_two, observer="minmax")

    def _insert(
        self,
        graph: ir.Graph,
        placement: Placement,
        chosen: list[ir.Node],
        statistics: Mapping[ir.Value, Statistics],
        weight_spec: QuantSpec,
        report: Report,
    ) -> None:
        spec = self._spec()
        scales: dict[ir.Value, Scale] = {}
        ranges: dict[str, tuple[float, float]] = {}
        pairs: dict[ir.Value, Scale] = {}
        for value, source in placement.scales.items():
            if source not in scales:
                low, high = propose_range(statistics[source], spec)
                ranges[str(source.name)] = low, high
                scales[source] = add_scale(graph, str(source.name), *scale_and_zero_point(low, high, spec))
            pairs[insert_pair(graph, value, scales[source], placement.nodes)] = scales[source]
        weights = Weights(graph, weight_spec, self.per_channel)
        for node in chosen:
            input_scale = pairs[operands(node)[0]].array
            bias = int32_bias(node)
            weight_scale = weights.quantize(node, input_scale)
            if weight_scale is not None and bias is not None:
                stored = quantize_bias_of(graph, node, bias, input_scale * weight_scale)
                if not stored:
                    report.skip(node.name, BIAS_CLIPS)
            channels = "" if weight_scale is None else f", {weight_scale.size} weight scales"
            bits = "" if weight_spec.bits in (None, 8) else f", {weight_spec.bits}-bit weights"
            report.change(node.name, f"{node.op_type} on {self.activations}{channels}{bits}")
        report.facts["ranges"] = ranges


BIAS_CLIPS = "its bias stays float: int32 at s_x * s_w would clip"


def _choose(
    model: ir.Model, include: tuple[str, ...], exclude: tuple[str, ...], rules: Rules, report: Report
) -> list[ir.Node]:
    chosen: list[ir.Node] = []
    for node in model.graph.all_nodes():
        if not is_weighted(node):
            continue
        left = None if node.op_type in rules.weighted else f"the target has no integer {node.op_type}"
        reason = left or _objection(node, model.graph, include, exclude)
        if reason is None:
            chosen.append(node)
        else:
            report.skip(node.name, reason)
    return chosen


def _objection(node: ir.Node, graph: ir.Graph, include: tuple[str, ...], exclude: tuple[str, ...]) -> str | None:
    """Why this weighted node can't be quantized, as far as the graph tells."""
    if include and not matches(node, include):
        return "not included"
    if matches(node, exclude):
        return "excluded"
    if node.graph is not graph:
        return "it is inside a subgraph"
    present = [v for v in node.inputs if v is not None]
    if any((p := v.producer()) is not None and p.op_type == "DequantizeLinear" for v in present):
        return "it is quantized already"
    dtypes = {v.dtype for v in (*present, *node.outputs)}
    if dtypes != {ir.DataType.FLOAT}:
        return f"it computes in {', '.join(sorted(str(d) for d in dtypes))}; float32 is quantized"
    weight = find_weight(node)
    if weight is None:
        computed_too = node.op_type in ("MatMul", "Gemm") and all(map(is_float_activation, present[:2]))
        return None if computed_too else "its weight is computed at run time"
    array = weight_array(weight)
    if array is None:
        return f"its weight {weight.root.name!r} comes through a Reshape: run fold-constants first"
    if not array.size or not np.isfinite(array).all():
        return f"its weight {weight.root.name!r} is empty or not finite"
    return None


def _unfit(node: ir.Node, placement: Placement, statistics: Mapping[ir.Value, Statistics], rules: Rules) -> str | None:
    """Why this node has to stay float, from what calibration saw."""
    for value in operands(node):
        seen = statistics[placement.scales[value]]
        if not seen.seen:
            return f"calibration never gave {value.name!r} a value"
        if not seen.finite:
            return f"{value.name!r} is not finite on the calibration data"
        peaks = [statistics[placement.scales[v]].peak for v in concatenated(value, rules) if v in placement.scales]
        peaks = [peak for peak in peaks if peak > 0]
        if peaks and max(peaks) > LOPSIDED * min(peaks):
            return f"{value.name!r} concatenates ranges 1 : {max(peaks) / min(peaks):.0f}, the smaller would be lost"
    return None
