"""Chains of elementwise operators onto one pass, and concatenations and slices that such a pass reads directly."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.llvm.kernels import lookup, pointwise
from graphopt.targets.llvm.kernels.epilogue import Activation
from graphopt.targets.llvm.kernels.formula import Formula
from graphopt.targets.llvm.kernels.grid import Grid
from graphopt.targets.llvm.kernels.pointwise import Kind, Operation, Pointwise, Segment
from graphopt.targets.llvm.plan.epilogues import activation_of, simple
from graphopt.targets.llvm.plan.integer import tables
from graphopt.targets.llvm.plan.kernels import ELEMENT, Kernels, call
from graphopt.targets.llvm.plan.layout import Image, Part, Twins, constant_to_last, image, is_turned

OPERATIONS = ("Add", "Sub", "Mul", "Div", "Max", "Min")


@dataclasses.dataclass(frozen=True)
class Chain:
    """Elementwise nodes, each the only user of the one before: what they start from, do, and end in."""

    nodes: tuple[ir.Node, ...]
    start: ir.Value
    steps: tuple[Operation | Activation | Formula, ...]
    operands: tuple[tuple[ir.Value, Kind], ...]
    grid: Grid | None = None  # of the result, where the last node is a QuantizeLinear

    @property
    def value(self) -> ir.Value:
        """The result."""
        return self.nodes[-1].outputs[0]

    @property
    def last(self) -> ir.Node:
        """Where the kernel must stand: every input is there by then."""
        return self.nodes[-1]


def chain(node: ir.Node, taken: set[ir.Node]) -> Chain | None:
    """The longest chain that starts with `node`, without the nodes `taken`."""
    starts = [v for v in node.inputs if v is not None and _same(v, node.outputs[0]) and constant_array(v) is None]
    for start in sorted(starts, key=_is_in_one_piece):  # parts are read here for nothing
        found = _from(start, node, taken)
        if found is not None:
            return found
    return None


def _from(start: ir.Value, node: ir.Node, taken: set[ir.Node]) -> Chain | None:
    nodes: list[ir.Node] = []
    steps: list[Operation | Activation | Formula] = []
    operands: list[tuple[ir.Value, Kind]] = []
    value = start
    while True:
        found = _head(value, node) if not nodes else activation_of(value)
        if found is not None and not taken.intersection(found[1]):
            steps.append(found[0])
            nodes.extend(found[1])
        else:
            user = node if not nodes else only_user(value)
            step = None if user is None or user in taken else _operation(user, value, len(operands))
            if user is not None and user not in taken and (grid := tables.grid_of(user, value)) is not None:
                return Chain((*nodes, user), start, tuple(steps), tuple(operands), grid)
            if step is None or user is None:
                break
            steps.append(step[0])
            operands.append(step[1])
            nodes.append(user)
        value = nodes[-1].outputs[0]
    return Chain(tuple(nodes), start, tuple(steps), tuple(operands)) if nodes else None


def _head(value: ir.Value, node: ir.Node) -> tuple[Activation | Formula, list[ir.Node]] | None:
    """The activation of `value` that starts with `node`; others may read `value` too."""
    found = activation_of(value)
    if found is not None and found[1][0] is node:
        return found
    alone = simple(node, value)
    return None if alone is None else (alone, [node])


def only_user(value: ir.Value) -> ir.Node | None:
    """The node that alone reads `value`."""
    users = {use.node for use in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None


def _is_in_one_piece(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is None or producer.op_type not in ("Concat", "Resize", "Split", "Slice")


def _same(value: ir.Value, output: ir.Value) -> bool:
    """Whether `value` is a float value, of the shape of `output`, that has a twin."""
    shape = image(value)
    same = value.shape == output.shape and shape == image(output)
    return shape is not None and same and value.dtype == ir.DataType.FLOAT


def _operation(node: ir.Node, value: ir.Value, index: int) -> tuple[Operation, tuple[ir.Value, Kind]] | None:
    """The arithmetic of `node` on `value`, and its other operand."""
    if node.domain != "" or node.op_type not in OPERATIONS or len(node.inputs) != 2:
        return None
    reverse = node.inputs[0] is not value
    other = node.inputs[0] if reverse else node.inputs[1]
    if other is None or other is value or not _same(value, node.outputs[0]):
        return None
    kind = _kind(other, value)
    return None if kind is None else (Operation(node.op_type, index, reverse), (other, kind))  # pyright: ignore[reportArgumentType]


def _kind(other: ir.Value, value: ir.Value) -> Kind | None:
    """How `other` broadcasts against `value`."""
    shape, array = image(value), constant_array(other)
    assert shape is not None
    if array is not None:
        assert value.shape is not None
        if array.ndim > len(value.shape) or array.dtype != np.float32:
            return None
        last = constant_to_last(array, value)
        return "channel" if last.size in (1, shape.c) and last.size == last.shape[3] else None
    found = image(other)
    if found is None or other.shape is None or value.shape is None or len(other.shape) != len(value.shape):
        return None
    if found.n != shape.n or (is_turned(other) and not is_turned(value)):
        return None
    kinds: dict[tuple[int, int, int], Kind] = {
        (shape.h, shape.w, 1): "pixel", (1, 1, shape.c): "image", (shape.h, shape.w, shape.c): "full",
    }  # fmt: skip
    return kinds.get((found.h, found.w, found.c))


def emit(found: Chain, kernels: Kernels, twins: Twins) -> None:
    """Put the kernel call in front of the chain's last node, and make its result the twin of the chain's value."""
    parts = twins.parts(found.start)
    bytes_only = found.grid is not None and all(part.grid is not None for part in parts)
    if bytes_only and tables.applies(found.start, found.nodes):
        twins.set(found.value, _look_up(found, parts, kernels, twins))
        return
    operands = [_operand(other, kind, found, kernels, twins) for other, kind in found.operands]
    steps = _Steps(found.steps, tuple(kind for _, kind in found.operands), tuple(g for _, g in operands), found.grid)
    twins.set(found.value, _call(found.value, parts, steps, [v for v, _ in operands], kernels, twins))


def _operand(other: ir.Value, kind: Kind, found: Chain, kernels: Kernels, twins: Twins) -> tuple[ir.Value, Grid | None]:
    """What the kernel reads of `other`, and what its bytes stand for."""
    array, shape = constant_array(other), image(found.value)
    assert shape is not None
    if array is None:
        if twins.known(other):
            part = twins.parts(other)[0]
            if part.grid is not None and part == Part(part.twin, 0, _channels(part.twin), grid=part.grid):
                return part.twin, part.grid
        return twins.last(other), None
    flat = array.reshape(-1)
    spread = kernels.constant(
        ("channel", other, shape.c),
        f"{other.name}_channels",
        lambda: np.ascontiguousarray(np.broadcast_to(flat, shape.c)),
    )
    return spread, None


def gather(value: ir.Value, parts: Sequence[Part], kernels: Kernels, twins: Twins) -> ir.Value:
    """The twin of `value` in one piece."""
    return _call(value, parts, _Steps(), [], kernels, twins)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """What a pass does to each element: see `Pointwise`."""

    steps: tuple[Operation | Activation | Formula, ...] = ()
    kinds: tuple[Kind, ...] = ()
    grids: tuple[Grid | None, ...] = ()
    grid: Grid | None = None


def _call(
    value: ir.Value, parts: Sequence[Part], done: _Steps, operands: Sequence[ir.Value], kernels: Kernels, twins: Twins
) -> ir.Value:
    shape = image(value)
    assert shape is not None
    segments = tuple(map(_segment, parts))
    p = Pointwise(shape.batch, shape.h, shape.w, segments, done.kinds, done.steps, done.grids, done.grid)
    base = "concat" if p.copies else "pointwise" if done.steps else "concat" if done.grid is None else "quantize"
    parallel = kernels.threads((p.n, p.h, p.w), p.channels * ELEMENT)
    symbol = kernels.symbol(p, base, lambda s: pointwise.make(p, kernels.isa, parallel, s))
    return _insert(value, symbol, [*(part.twin for part in parts), *operands], shape, twins)


def _insert(value: ir.Value, symbol: str, inputs: Sequence[ir.Value], shape: Image, twins: Twins) -> ir.Value:
    producer = value.producer()
    assert producer is not None
    called = call(symbol, inputs, shape.last, producer, value.dtype)
    twins.insert(called)
    return called.outputs[0]


def _look_up(found: Chain, parts: Sequence[Part], kernels: Kernels, twins: Twins) -> ir.Value:
    """The result by tables, one for each part."""
    shape = image(found.value)
    assert shape is not None
    grids = [part.grid for part in parts if part.grid is not None]
    make = functools.partial(tables.table, found.start, found.nodes)
    entries = [
        kernels.constant(("table", found.nodes, grid), f"{found.value.name}_table", functools.partial(make, grid))
        for grid in grids
    ]
    segments = tuple(dataclasses.replace(_segment(part), grid=None) for part in parts)
    p = Pointwise(shape.batch, shape.h, shape.w, segments)
    parallel = kernels.threads((p.n, p.h, p.w), p.channels)
    symbol = kernels.symbol(("lookup", p), "lookup", lambda s: lookup.make(p, kernels.isa, parallel, s))
    return _insert(found.value, symbol, [*(part.twin for part in parts), *entries], shape, twins)


def _channels(twin: ir.Value) -> int:
    """Channels of a twin."""
    assert twin.shape is not None
    channels = twin.shape[-1]
    assert isinstance(channels, int)
    return channels


def _segment(part: Part) -> Segment:
    """What the kernel needs to know of `part`."""
    assert part.twin.shape is not None
    height, width = part.twin.shape[1:3]
    assert isinstance(height, int)
    assert isinstance(width, int)
    dtype = "uint8" if part.twin.dtype == ir.DataType.UINT8 else "float32"
    where = (part.start, part.count, part.scale, part.step, part.offset)
    return Segment((height, width), _channels(part.twin), *where, dtype, part.grid)
