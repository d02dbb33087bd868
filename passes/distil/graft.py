"""A student beside its teacher: how far it is off, and how it takes the teacher's place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt import oracle
from graphopt.errors import PassError
from graphopt.graph import add_constant, derive, fresh_name
from graphopt.passes.distil.affine import positions
from graphopt.passes.distil.moments import relative, standard
from graphopt.passes.distil.region import Region
from graphopt.passes.distil.student import Array
from graphopt.progress import track

if TYPE_CHECKING:
    from graphopt.data import Feeds


def activations(
    model: ir.Model, regions: Sequence[Region], batches: Iterable[Feeds]
) -> Iterator[list[tuple[Array, Array]]]:
    """The input and output of each region for each batch, as the model computes them.

    Raises `PassError` when one of them is not finite: nothing can be fitted to it.
    """
    ends = [(region.inputs[0], region.outputs[0]) for region in regions]
    tapped = dict.fromkeys(value for pair in ends for value in pair if not value.is_graph_input())
    session = oracle.Session(model, [str(value.name) for value in tapped])
    for feeds in track(batches, "Gathering activations"):
        values = {**feeds, **session.run(feeds)}
        for region, pair in zip(regions, ends, strict=True):
            bad = [value.name for value in pair if not np.isfinite(values[str(value.name)]).all()]
            if bad:
                raise PassError(
                    f"`{bad[0]}`, at an end of the region `{region.title}`, is not finite on the calibration data: "
                    "look for the sample that causes it, or leave the region out of the substitution."
                )
        yield [(values[str(x.name)], values[str(y.name)]) for x, y in ends]


def student_error(student: ir.Model, axis: int, pairs: Iterable[tuple[Array, Array]]) -> float:
    """``|(student(x) - y) / std| / |(y - mean) / std|`` over all pairs, run in onnxruntime.

    Mean and standard deviation are those of each channel (`axis`) of y. Infinite when the student gives a value
    that is not finite.
    """
    session = oracle.Session(student)
    count, shift, sums = 0, np.zeros(1), np.zeros((3, 1))
    for x, y in pairs:
        rows = positions(y, axis).astype(np.float64)
        shift = rows.mean(axis=0) if count == 0 else shift  # sums about the first batch's mean, as in `Moments`
        (given,) = session.run({str(student.graph.inputs[0].name): x}).values()
        gap, drift = positions(given, axis) - rows, rows - shift
        sums = sums + np.stack([(gap**2).sum(axis=0), drift.sum(axis=0), (drift**2).sum(axis=0)])
        count += len(rows)
    residual, first, second = sums / count
    variance = np.maximum(second - first**2, 0.0)
    weight = standard(variance) ** 2
    error = relative(float(np.sum(weight * residual)), float(np.sum(weight * variance)))
    return error if np.isfinite(error) else float("inf")


def outputs_error(before: ir.Model, after: ir.Model, batches: Iterable[Feeds]) -> dict[str, float]:
    """Relative L2 error of each float output of the whole model."""
    names = [str(value.name) for value in before.graph.outputs if value.dtype and value.dtype.is_floating_point()]
    sums = {name: np.zeros(2) for name in names}
    old, new = oracle.Session(before, names), oracle.Session(after, names)
    for feeds in batches:
        wanted, got = old.run(feeds), new.run(feeds)
        for name in names:
            wide = wanted[name].astype(np.float64)
            sums[name] += np.sum((got[name] - wide) ** 2), np.sum(wide**2)
    return {name: relative(float(residual), float(total)) for name, (residual, total) in sums.items()}


def graft(model: ir.Model, region: Region, student: ir.Model) -> list[ir.Node]:
    """Put the student's nodes in the place of the region's, under fresh names; returns them.

    The region's output keeps its name. Constants that nothing reads any more are left for `remove_unused`.
    """
    graph, old = model.graph, region.outputs[0]
    last = old.producer()
    assert last is not None
    values: dict[ir.Value, ir.Value] = {student.graph.inputs[0]: region.inputs[0]}
    for name, value in student.graph.initializers.items():
        assert value.const_value is not None
        values[value] = add_constant(graph, name, value.const_value.numpy())
    made = [_copy(graph, node, values) for node in student.graph]
    for node in made:
        derive(node, region.nodes)
    ir.convenience.replace_nodes_and_values(
        graph, last, list(region.nodes), made, [old], [values[student.graph.outputs[0]]]
    )
    return made


def _copy(graph: ir.Graph, node: ir.Node, values: dict[ir.Value, ir.Value]) -> ir.Node:
    inputs: Sequence[ir.Value | None] = [None if value is None else values[value] for value in node.inputs]
    twin = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), name=fresh_name(graph, str(node.name)))
    for value, new in zip(node.outputs, twin.outputs, strict=True):
        new.name, new.type, new.shape = fresh_name(graph, str(value.name)), value.type, value.shape
        values[value] = new
    return twin
