"""Each node's error: the values of both graphs on the same inputs, in onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.cost import cost
from graphopt.report.evidence import NodeError

Array = np.ndarray[Any, Any]
AT_ONCE = 1 << 28
"""Bytes of values that are kept at a time."""


def node_errors(before: ir.Model, after: ir.Model, feeds: Mapping[str, Array]) -> dict[str, NodeError]:
    """By name of the node after: how far its first output is from the value of the same name before.

    Passes keep the names of values that they keep the meaning of; others have no counterpart, and no error.

    Raises:
        DataError: `feeds` don't fit.
        ModelError: onnxruntime does not run one of the graphs.
    """
    from graphopt import oracle

    found: dict[str, NodeError] = {}
    for nodes in _batches(before, after):
        names = [str(node.outputs[0].name) for node in nodes]
        was, now = (oracle.run(model, feeds, outputs=names) for model in (before, after))
        for node, name in zip(nodes, names, strict=True):
            error = compare(was[name], now[name])
            if error is not None:
                found[node.name or ""] = error
    return found


def _batches(before: ir.Model, after: ir.Model) -> Iterator[list[ir.Node]]:
    """Nodes after with a counterpart before, in runs whose values fit in `AT_ONCE`."""
    known = {value.name for node in before.graph for value in node.outputs}
    sizes = {node.name: node.bytes_written for node in cost(after).nodes}
    batch: list[ir.Node] = []
    total = 0
    for node in after.graph:
        if node.op_type == "Constant" or not node.outputs or node.outputs[0].name not in known:
            continue
        nbytes = 2 * sizes.get(node.name or "", 0)
        if batch and total + nbytes > AT_ONCE:
            yield batch
            batch, total = [], 0
        batch.append(node)
        total += nbytes
    if batch:
        yield batch


def compare(was: Any, now: Any) -> NodeError | None:
    """The error of `now`; None where the two can't be compared."""
    a, b = np.asarray(was), np.asarray(now)
    if a.shape != b.shape or a.dtype.kind not in "fiu" or b.dtype.kind not in "fiu" or not a.size:
        return None
    a, b = a.astype(np.float64), b.astype(np.float64)
    usable = np.isfinite(a) & np.isfinite(b)
    gap = (b - a)[usable]
    signal, noise = float(np.square(a[usable]).sum()), float(np.square(gap).sum())
    if not noise:
        return NodeError(None, 0.0, 0.0)
    relative = math.sqrt(noise / signal) if signal else 1.0
    return NodeError(10 * math.log10(signal / noise) if signal else 0.0, float(np.abs(gap).max()), relative)
