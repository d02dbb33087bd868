"""Times of nodes that are computed together as times of the source model's layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from graphopt.measure.by_node import ByNode


@dataclasses.dataclass(frozen=True)
class Layer:
    """Nodes that are computed together, under the name of the one with the most multiply-accumulates.

    `share`: of all layers. `ratio`: onnxruntime's time over ours, above 1 we are faster; None where it has none.
    """

    name: str
    ms: float
    share: float
    onnxruntime_ms: float
    ratio: float | None
    kernels: list[str]
    nodes: list[str]


def layers(measured: ByNode, macs: Mapping[str, int]) -> list[Layer]:
    """The layers that take time here, the slowest first. `macs`: of each source node.

    What computes no node (TVM's memory and shapes) has no layer: timing each small call costs more than the call.
    """
    rows = [row for row in measured.rows if row.ms > 0]
    total = sum(row.ms for row in rows) or 1.0
    found = [
        Layer(
            name=max(row.nodes, key=lambda name: macs.get(name, 0)),
            ms=row.ms,
            share=row.ms / total,
            onnxruntime_ms=row.onnxruntime_ms,
            ratio=row.ratio,
            kernels=row.kernels,
            nodes=row.nodes,
        )
        for row in rows
    ]
    return sorted(found, key=lambda layer: (-layer.ms, layer.name))
