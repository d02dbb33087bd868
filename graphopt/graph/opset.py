"""Raise the opset of a model within what graphopt reads, in place and with provenance kept.

From opset 13 to 21 few operators of the default domain mean something else; each such change is made here. (The
converters at hand give the nodes of an older model a newer number without the change, or lose their metadata.)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.graph.edit import add_constant, fresh_name

HIGHEST = 21
_AXES_INPUT = frozenset(
    {"ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum"}
    | {"ReduceLogSumExp", "ReduceSumSquare"}
)
_GRID_MODES = {"bilinear": "linear", "bicubic": "cubic"}


def raise_opset(model: ir.Model, version: int) -> None:
    """Make `model` one of opset `version` (13 to `HIGHEST`) where it is of an older one, changing no result.

    Reduce* get their axes as an input (18), Split says how many outputs it has (18), RoiAlign keeps its old
    coordinates (16), GridSample's modes are renamed (20).

    Raises:
        ModelError: the model has operators whose newer form is another (DFT, GroupNormalization), or model-local
            functions, which have opsets of their own.
    """
    before = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 13))
    if before >= version:
        return
    nodes = [node for node in model.graph.all_nodes() if node.domain in ("", "ai.onnx")]
    barred = sorted({n.op_type for n in nodes} & {"DFT", "GroupNormalization"} if version >= 20 else set())
    if barred or model.functions:
        what = ", ".join(barred) or "model-local functions"
        raise ModelError(
            f"the model is of opset {before}, opset {version} is needed, and {what} can't be carried over: export it "
            f"again with opset {version}."
        )
    for node in nodes:
        if before < 18 <= version and node.op_type in _AXES_INPUT:
            _axes_to_input(model.graph, node)
        elif before < 18 <= version and node.op_type == "Split" and not any(node.inputs[1:]):
            node.resize_inputs(1)
            node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
        elif before < 16 <= version and node.op_type == "RoiAlign":
            old = ir.AttrString("coordinate_transformation_mode", "output_half_pixel")
            node.attributes.setdefault(old.name, old)
        elif before < 20 <= version and node.op_type == "GridSample":
            mode = node.attributes.get_string("mode", "bilinear")
            node.attributes["mode"] = ir.AttrString("mode", _GRID_MODES.get(str(mode), str(mode)))
    for graph in model.graphs():
        graph.opset_imports.pop("ai.onnx", None)
    model.graph.opset_imports[""] = version
    model.ir_version = max(model.ir_version, 10)


def _axes_to_input(graph: ir.Graph, node: ir.Node) -> None:
    axes = node.attributes.pop("axes", None)
    if axes is None:
        return
    constant = add_constant(graph, fresh_name(graph, f"{node.name}_axes"), np.array(axes.as_ints(), np.int64))
    node.resize_inputs(2)
    node.replace_input_with(1, constant)
