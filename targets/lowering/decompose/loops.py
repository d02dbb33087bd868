"""Scan over a known number of steps, written out step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import derive, fresh_name
from graphopt.targets.lowering.decompose.write import Write, sizes, writer

MAX_NODES = 2000
"""Longer loops stay whole: what a step is worth is lost in compile time."""


def _scan(node: ir.Node) -> list[ir.Value | None] | None:
    """``state, y_t = body(state, x_t)`` for each t, the y_t stacked."""
    body = node.attributes["body"].as_graph()
    count = node.attributes.get_int("num_scan_inputs", 1)
    states = len(node.inputs) - count
    scanned = list(node.inputs)[states:]
    axes = _axes(node, "scan_input_axes", count)
    shapes = [sizes(value) for value in scanned]
    backwards = _axes(node, "scan_input_directions", count)
    outputs = len(node.outputs) - states
    out_axes, out_backwards = (_axes(node, f"scan_output_{what}", outputs) for what in ("axes", "directions"))
    if any(shape is None for shape in shapes) or None in node.inputs or _nested(body):
        return None
    steps = shapes[0][axes[0]]  # pyright: ignore[reportOptionalSubscript]
    if steps == 0 or steps * len(body) > MAX_NODES:
        return None
    do = writer(node)
    state = list(node.inputs)[:states]
    collected: list[list[ir.Value]] = [[] for _ in range(outputs)]
    for step in range(steps):
        here = [
            do("Gather", value, _scalar(steps - 1 - step if back else step), axis=axis)
            for value, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        results = copy_in(node, body, [*state, *here])
        state = results[:states]
        for items, result in zip(collected, results[states:], strict=True):
            items.append(result)
    stacked = [
        _stack(do, items[::-1] if back else items, axis)
        for items, axis, back in zip(collected, out_axes, out_backwards, strict=True)
    ]
    return [*(do("Identity", value) for value in state), *stacked]


def _nested(body: ir.Graph) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for n in body for a in n.attributes.values())


def _scalar(value: int) -> np.ndarray[Any, Any]:
    return np.array(value, np.int64)


def _axes(node: ir.Node, name: str, count: int) -> list[int]:
    found = node.attributes.get(name)
    return [int(k) for k in found.as_ints()] if found is not None else [0] * count


def _stack(do: Write, items: list[ir.Value], axis: int) -> ir.Value:
    return do("Concat", *(do("Unsqueeze", item, [axis]) for item in items), axis=axis)


def copy_in(at: ir.Node, body: ir.Graph, inputs: list[ir.Value | None]) -> list[ir.Value]:
    """A copy of the nodes of `body` in front of `at`, with `inputs` for its own; gives its outputs."""
    graph = at.graph
    assert isinstance(graph, ir.Graph)
    values: dict[ir.Value, ir.Value | None] = dict(zip(body.inputs, inputs, strict=True))
    for value in body.initializers.values():
        copy = ir.val(
            fresh_name(graph, f"{at.name}_{value.name}"), value.dtype, value.shape, const_value=value.const_value
        )
        graph.register_initializer(copy)
        values[value] = copy
    for inner in body:
        made = ir.node(
            inner.op_type,
            [values.get(v, v) if v is not None else None for v in inner.inputs],
            attributes=None,
            domain=inner.domain,
            outputs=[ir.val(fresh_name(graph, f"{at.name}_{v.name}"), v.dtype) for v in inner.outputs],
            name=fresh_name(graph, f"{at.name}_{inner.name}"),
        )
        for name, attribute in inner.attributes.items():
            made.attributes[name] = attribute
        derive(made, [at])
        graph.insert_before(at, made)
        values.update(zip(inner.outputs, made.outputs, strict=True))
    results = [values.get(value, value) for value in body.outputs]
    return [value for value in results if value is not None]


REWRITES = {"Scan": _scan}
