"""A graph in which only some of a pass's changes are made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.base import Preserves
from graphopt.debug.changes import Change, Side, changes, following, needs, rim
from graphopt.debug.nodes import Constants, Node, build, same_constant
from graphopt.errors import DataError, ModelError

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

JOINED = 16
"""Changes that are tried as one, at most."""
ROUNDS = 4


def hybrid(before: Side, after: Side, made: Collection[Change]) -> ir.Model | None:
    """The before-graph with the changes `made`; None when its nodes would wait for each other."""
    gone = {k for change in made for k in change.old}
    come = sorted({k for change in made for k in change.new})
    constants = dict(before.constants)
    renamed = _bring(constants, after, come, set(before.producer))
    nodes: list[tuple[Node, Mapping[str, str]]] = [(node, {}) for k, node in enumerate(before.nodes) if k not in gone]
    nodes += [(after.nodes[k], {n: m for n, m in renamed.items() if n in after.nodes[k].inputs}) for k in come]
    return build(after.model, nodes, constants, before.model.graph.inputs, before.model.graph.outputs)


def _bring(constants: Constants, after: Side, come: Sequence[int], produced: set[str]) -> dict[str, str]:
    """Add the constants that the new nodes read; those whose name stands for something else get another one."""
    renamed: dict[str, str] = {}
    for name in dict.fromkeys(n for k in come for n in after.nodes[k].inputs):
        tensor = after.constants.get(name)
        if tensor is None:
            continue
        if name in produced or (name in constants and not same_constant(constants[name], tensor)):
            renamed[name] = f"{name}/after"
        constants[renamed.get(name, name)] = tensor
    return renamed


def joined_changes(before: Side, after: Side, preserves: Preserves, feeds: Mapping[str, Array]) -> list[Change]:
    """The pass's changes, those joined that only together keep the values on their rim.

    Each change's new nodes run on the before-graph's own values. Where a value on the rim comes out different and other
    changes read it, they are taken in, as long as that ends with a rim that is kept. What is left is wrong (or the pass
    is lossy): of that, a change and those that read what it moved count as one, when they are wrong by themselves too.
    """
    found = changes(before, after)
    values = _values(before, after, found, feeds)
    moved = {change: _moved(change, before, after, values, preserves) for change in found}
    at = 0
    while at < len(found):
        part, merged = found[at], [found[at]]
        for _ in range(ROUNDS):
            more = [c for c in following(part, moved[part], found, before, after) if c not in merged]
            if not more or len(merged) + len(more) > JOINED:
                break
            merged += more
            part = _union([part, *more])
            moved[part] = _moved(part, before, after, values, preserves)
        if len(merged) > 1 and not moved[part]:
            found = _joined(found, found[at], merged, part)
        at += 1
    for change in list(found):
        wrong = [c for c in following(change, moved[change], found, before, after) if moved[c]]
        if change in found and wrong and len(wrong) < JOINED:
            part = _union([change, *wrong])
            moved[part] = _moved(part, before, after, values, preserves)
            found = _joined(found, change, [change, *wrong], part)
    return found


def _union(parts: Sequence[Change]) -> Change:
    whole = parts[0]
    for part in parts[1:]:
        whole |= part
    return whole


def _joined(found: Sequence[Change], place: Change, merged: Collection[Change], part: Change) -> list[Change]:
    """`found` with `part` at `place`, in the stead of `merged`."""
    return [part if c is place else c for c in found if c is place or c not in merged]


def _values(before: Side, after: Side, found: Sequence[Change], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The before-graph's values around the changes; empty when it does not run."""
    from graphopt import oracle

    names = {name for change in found for name in (*needs(change, after), *rim(change, before, after))}
    wanted = sorted(name for name in names if name in before.producer)
    try:
        return {**feeds, **(oracle.run(before.model, feeds, wanted) if wanted else {})}
    except (ModelError, DataError):
        return {}


def _moved(change: Change, before: Side, after: Side, values: Mapping[str, Array], preserves: Preserves) -> list[str]:
    """Values on the rim that the change's new nodes compute otherwise than the before-graph, from the same inputs."""
    from graphopt import oracle

    names, inputs = rim(change, before, after), needs(change, after)
    if not names:
        return []
    if any(name not in values for name in (*names, *inputs)):
        return names
    constants: Constants = {}
    renamed = _bring(constants, after, change.new, set())
    stand_ins = [_value(name, values[name]) for name in inputs]
    outputs = [ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(values[name].dtype))) for name in names]
    island = build(after.model, [(after.nodes[k], renamed) for k in change.new], constants, stand_ins, outputs)
    if island is None:
        return names
    try:
        got = oracle.run(island, {name: values[name] for name in inputs}, names)
    except (ModelError, DataError):
        return names
    return [name for name in names if not _alike(values[name], got[name], preserves)]


def _value(name: str, array: Array) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape))


def _alike(want: Array, got: Array, preserves: Preserves) -> bool:
    """The same value for the purpose of a boundary: within 1e-4, or for a lossy pass within a third."""
    from graphopt.pipeline.verify import allowed_rtol, worst_error

    if preserves.kind == "lossy":
        if want.shape != got.shape or want.dtype.kind not in "fiu":
            return want.shape == got.shape
        a, b = want.astype(np.float64), got.astype(np.float64)
        return float(np.linalg.norm(a - b)) <= 0.3 * float(np.linalg.norm(a))
    rtol = max(allowed_rtol(Preserves("tolerance", preserves.rtol), want.dtype), 1e-4)
    error, bound = worst_error(want, got, rtol, preserves.atol)
    return error <= bound
