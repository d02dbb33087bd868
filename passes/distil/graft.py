"""A student beside its teacher: how far it is off, and how it takes the teacher's place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt import oracle
from graphopt.errors import PassError
from graphopt.graph import add_constant, derive, fresh_name
from graphopt.passes.distil.moments import relative
from graphopt.passes.distil.region import Region
from graphopt.passes.distil.student import Array

if TYPE_CHECKING:
    from graphopt.data import Feeds


def activations(model: ir.Model, region: Region, batches: Iterable[Feeds]) -> Iterator[tuple[Array, Array]]:
    """The region's input and output for each batch, as the model computes them.

    Raises `PassError` when the teacher's values are not finite: nothing can be fitted to them.
    """
    x, y = str(region.inputs[0].name), str(region.outputs[0].name)
    fed = region.inputs[0].is_graph_input()
    session = oracle.Session(model, [y] if fed else [x, y])
    for feeds in batches:
        values = {**feeds, **session.run(feeds)}
        if not (np.isfinite(values[x]).all() and np.isfinite(values[y]).all()):
            raise PassError(
                f"the region ending at `{region.name}` has values that are not finite (`{x}` or `{y}`) on the "
                "calibration data: leave it out of the substitution, or look for the data that causes it."
            )
        yield values[x], values[y]


def student_error(student: ir.Model, pairs: Iterable[tuple[Array, Array]]) -> float:
    """Relative L2 error ``|student(x) - y| / |y|`` over all pairs, run in onnxruntime."""
    session = oracle.Session(student)
    return relative_error((session.run({"x": x})["y"], y) for x, y in pairs)


def relative_error(pairs: Iterable[tuple[Array, Array]]) -> float:
    """Relative L2 error over (student's, teacher's) arrays; infinite when a student's value is not finite."""
    residual = total = 0.0
    for got, wanted in pairs:
        wide = wanted.astype(np.float64)
        residual += float(np.sum((got - wide) ** 2))
        total += float(np.sum(wide**2))
    return relative(residual, total) if np.isfinite(residual) else float("inf")


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
    ir.convenience.replace_nodes_and_values(graph, last, list(region.nodes), made, [old], [made[-1].outputs[0]])
    return made


def _copy(graph: ir.Graph, node: ir.Node, values: dict[ir.Value, ir.Value]) -> ir.Node:
    inputs: Sequence[ir.Value | None] = [None if value is None else values[value] for value in node.inputs]
    twin = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), name=fresh_name(graph, str(node.name)))
    for value, new in zip(node.outputs, twin.outputs, strict=True):
        new.name, new.type, new.shape = fresh_name(graph, str(value.name)), value.type, value.shape
        values[value] = new
    return twin
