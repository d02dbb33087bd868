"""One name for one symbolic dimension, as far as the graph tells.

onnx's inference gives the result of ``Slice(table, 0, T)`` a fresh name where T is a dimension of an input, as of
position embeddings, and with it all that is computed from there on. Kernels over several inputs need to know that these
are equal.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array, infer_shapes
from graphopt.targets.lowering.shape_chains import Dim, Elements, elements_of

ENDLESS = 1_000_000_000
"""What converters write for "to the end" where a dimension is open: no tensor has as many elements along an axis."""


def name_symbols(model: ir.Model) -> None:
    """Infer all shapes of the main graph anew, in place, with the first T elements of a constant being T elements.

    (A T beyond the constant's size gives fewer; the shapes then contradict each other when the model runs.)
    Slices that keep everything go.
    """
    dropped = _drop_whole_slices(model)
    known: dict[ir.Value, Elements | None] = {}
    named = {node.outputs[0]: shape for node in model.graph if (shape := _sliced(node, known)) is not None}
    if not named and not dropped:
        return
    before = {value: value.shape for node in model.graph.all_nodes() for value in node.outputs}
    for value in before:
        value.shape = None
    for value, shape in named.items():
        value.shape = shape
    infer_shapes(model)
    for value, old in before.items():
        value.shape = _better(value.shape, old)


def _drop_whole_slices(model: ir.Model) -> bool:
    """Take out each Slice that keeps all of its input: its result would get sizes of another name. Whether any went."""
    nodes = len(model.graph)
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Slice" and node.domain == "" else None
        if source is None or node.outputs[0].is_graph_output() or not _keeps_all(node, source):
            continue
        node.outputs[0].replace_all_uses_with(source)
        model.graph.remove(node, safe=True)
    return len(model.graph) < nodes


def _keeps_all(node: ir.Node, source: ir.Value) -> bool:
    bounds = [constant_array(value) for value in node.inputs[1:]]
    if source.shape is None or len(bounds) < 3 or any(bound is None for bound in bounds):
        return False
    starts, ends, axes, *steps = [bound.reshape(-1).tolist() for bound in bounds if bound is not None]
    sizes = [source.shape[axis] for axis in axes]
    reach = [end >= (size if isinstance(size, int) else ENDLESS) for end, size in zip(ends, sizes, strict=True)]
    return not any(starts) and all(step == 1 for step in (steps[0] if steps else ())) and all(reach)


def _sliced(node: ir.Node, known: dict[ir.Value, Elements | None]) -> ir.Shape | None:
    """The shape of a slice from the start of a constant, ended by dimensions of other values."""
    data = constant_array(node.inputs[0]) if node.op_type == "Slice" and node.domain == "" else None
    if data is None or len(node.inputs) < 4:
        return None
    ends = elements_of(node.inputs[2], known)
    starts, axes = constant_array(node.inputs[1]), constant_array(node.inputs[3])
    steps = constant_array(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
    if ends is None or starts is None or axes is None or steps is None or np.any(starts != 0) or np.any(steps != 1):
        return None
    dims: list[int | ir.SymbolicDim] = list(data.shape)
    for axis, end in zip(axes.reshape(-1).tolist(), ends, strict=True):
        if not isinstance(end, Dim) or end.name is None:
            return None
        dims[axis] = ir.SymbolicDim(end.name)
    return ir.Shape(dims)


def _better(new: ir.Shape | None, old: ir.Shape | None) -> ir.Shape | None:
    """The new shape with the numbers that only the old one knew."""
    if new is None or old is None or len(new) != len(old):
        return old if new is None else new
    return ir.Shape([o if isinstance(o, int) else n for n, o in zip(new, old, strict=True)])
