"""What the target says: where a model's time goes, and whether a student makes it faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.graph.cost import macs
from graphopt.passes.distil.graft import graft
from graphopt.passes.distil.region import LINEAR, Region, of_nodes

if TYPE_CHECKING:
    from graphopt.base import Target
    from graphopt.data import Feeds
    from graphopt.measure.speedup import Beside

ENERGY = 0.9
"""The part of a weight's squared singular values that counts for how compressible it is."""


class Clock:
    """Measures on one target, with one sample. The model it compares with is compiled once, until `changed`."""

    def __init__(self, target: Target, sample: Feeds) -> None:
        self.target, self._sample = target, sample
        self._beside: Beside | None = None

    def changed(self) -> None:
        """The model is another one from now on."""
        self._beside = None

    def ratio(self, model: ir.Model, region: Region, student: ir.Model) -> float:
        """The time of the model with the student in the region's place, as a part of the time it takes now."""
        from graphopt.measure.speedup import Beside

        trial = model.clone()
        nodes = {node.name: node for node in trial.graph}
        graft(trial, of_nodes(trial.graph, [nodes[node.name] for node in region.nodes]), student)
        if self._beside is None:
            self._beside = Beside(model, self.target, self._sample)
        return self._beside.speed(trial).measured

    def ranked(self, model: ir.Model, regions: Sequence[Region]) -> list[Region]:
        """The regions by the part of the model's time that is theirs, times the part of it that could go.

        What could go of a layer is ``1 - r (m + n) / (m n)``, the r largest singular values of its m x n weight holding
        0.9 of their squares; of a region, the mean over its layers by MACs.
        """
        time = self._times(model)
        worth = {r.nodes: sum(time.get(str(node.name), 0.0) for node in r.nodes) * _loose(r) for r in regions}
        return sorted(regions, key=lambda region: (-worth[region.nodes], -region.macs))

    def _times(self, model: ir.Model) -> dict[str, float]:
        """Milliseconds by node; a kernel's are shared out among its nodes by their MACs."""
        from graphopt.api import compile as build
        from graphopt.measure.profile import profile

        work = {str(node.name): float(macs(node)) for node in model.graph}
        found: dict[str, float] = {}
        with build(model, self.target, verify=False) as program:
            kernels, _ = profile(program, self._sample, seconds=0.5)
        for kernel in kernels:
            total = sum(work.get(name, 0.0) for name in kernel.nodes)
            for name in kernel.nodes:
                part = work.get(name, 0.0) / total if total else 1 / len(kernel.nodes)
                found[name] = found.get(name, 0.0) + part * kernel.ms
        return found


def _loose(region: Region) -> float:
    parts, weights = [0.0], [1e-9]
    for node in region.nodes:
        array = constant_array(node.inputs[1]) if node.op_type in LINEAR else None
        if array is None or array.ndim < 2:
            continue
        matrix = array.reshape(len(array), -1) if node.op_type == "Conv" else array
        m, n = matrix.shape
        short = matrix if m <= n else matrix.T
        values = np.maximum(np.linalg.eigvalsh(short @ short.T)[::-1], 0.0)
        rank = int(np.searchsorted(np.cumsum(values), ENERGY * values.sum())) + 1
        parts.append(max(0.0, 1 - rank * (m + n) / (m * n)))
        weights.append(float(macs(node)))
    return float(np.average(parts, weights=weights)) + 1e-3
