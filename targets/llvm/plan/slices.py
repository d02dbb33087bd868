"""Slices of channels-last values: which channels and positions of the twin the result consists of. Nothing is moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.llvm.plan.layout import Part, Twins, image, is_turned


def emit(node: ir.Node, twins: Twins) -> bool:
    """Make the parts of a Slice with constant bounds; the batch must stay whole."""
    source, result = node.inputs[0], node.outputs[0]
    x, y, taken = image(source), image(result), _bounds(node)
    if source is None or x is None or y is None or taken is None or is_turned(source) != is_turned(result):
        return False
    if taken[0] != (0, 1) or y.n != x.n or len(taken) < 3:
        return False
    (channel, by), *places = taken[1:]
    places = [(0, 1), *places] if len(places) == 1 else places
    (top, down), (left, across) = reversed(places) if is_turned(source) else places
    moved = (top, down, left, across) != (0, 1, 0, 1) or (x.h, x.w) != (y.h, y.w)
    parts = twins.parts(source)
    if by != 1 or (moved and any(part.scale != (1, 1) for part in parts)):
        return False
    parts = [
        dataclasses.replace(
            part,
            step=(part.step[0] * down, part.step[1] * across),
            offset=(part.offset[0] + part.step[0] * top, part.offset[1] + part.step[1] * left),
        )
        for part in cut(parts, channel, channel + y.c)
    ]
    twins.set_parts(result, parts)
    return True


def joined(node: ir.Node) -> bool:
    """Whether `node` takes some positions of a picture that are joined again as channels, or joins such.

    A detector's first layers put each 2x2 pixels into one so. What is joined will be channels-last.
    """
    if node.domain != "" or image(node.outputs[0]) is None:
        return False
    if node.op_type == "Slice":
        return image(node.inputs[0]) is not None and _bounds(node) is not None and _is_joined(node.outputs[0])
    return False


def _is_joined(value: ir.Value) -> bool:
    users = [use.node for use in value.uses()]
    slices = [user for user in users if user.op_type == "Slice" and user.domain == ""]
    joins = [user for user in users if user.op_type == "Concat" and user.attributes.get_int("axis", 0) in (1, -3)]
    whole = len(slices) + len(joins) == len(users) > 0 and not value.is_graph_output()
    return whole and len(value.shape or ()) == 4 and all(_is_joined(user.outputs[0]) for user in slices)


def _bounds(node: ir.Node) -> list[tuple[int, int]] | None:
    """Start and step for each axis; None where something is not known."""
    source = node.inputs[0]
    constants = [constant_array(v) for v in node.inputs[1:]]
    if source is None or source.shape is None or len(constants) < 2 or any(c is None for c in constants):
        return None
    rank = len(source.shape)
    lists: list[list[int]] = [c.reshape(-1).tolist() for c in constants if c is not None]
    starts, _, axes, steps, *_ = [*lists, *[list(range(rank)), [1] * len(lists[0])][len(lists) - 2 :]]
    found = [(0, 1)] * rank
    for start, axis, step in zip(starts, axes, steps, strict=True):
        size = source.shape[axis]
        if not isinstance(size, int):
            if (start, step) != (0, 1):
                return None
            continue
        low, high = (0, size) if step > 0 else (0, size - 1)
        found[axis % rank] = (max(low, min(start + size if start < 0 else start, high)), step)
    return found


def cut(parts: Sequence[Part], start: int, stop: int) -> list[Part]:
    """Channels [start, stop) of what consists of `parts`."""
    found: list[Part] = []
    for part in parts:
        low, high = max(start, 0), min(stop, part.count)
        if low < high:
            found.append(dataclasses.replace(part, start=part.start + low, count=high - low))
        start, stop = start - part.count, stop - part.count
    return found
