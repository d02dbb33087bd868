"""Quantized regions onto integer kernels.

A module of `FAMILIES` has ``find(nodes, taken) -> list[Region]``, in which a region's nodes are not among those `taken`
by families before it, and ``emit(region, kernels, twins)``, which puts the kernel call in front of the region's last
node and makes its result the twin of the region's value. Integer values that kernels read and write are uint8 (see
`unsigned`), with twins like float ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import ModuleType

import onnx_ir as ir

from graphopt.targets.llvm.plan.integer import behind, calls, few_bits, pools
from graphopt.targets.llvm.plan.integer.choose import precision
from graphopt.targets.llvm.plan.integer.layers import Layer
from graphopt.targets.llvm.plan.integer.region import Region
from graphopt.targets.llvm.plan.integer.weights import WEIGHTED, make_float
from graphopt.targets.llvm.plan.kernels import Kernels
from graphopt.targets.llvm.plan.layout import Twins

FAMILIES: tuple[ModuleType, ...] = (calls, pools, few_bits, behind)


@dataclasses.dataclass(frozen=True)
class Found:
    """A region and the family that covers it."""

    region: Region
    family: ModuleType

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """What the region replaces."""
        return self.region.nodes


def find(nodes: Sequence[ir.Node]) -> dict[ir.Node, Found]:
    """The region that ends at a node."""
    found: dict[ir.Node, Found] = {}
    taken: set[ir.Node] = set()
    for family in FAMILIES:
        for region in family.find(nodes, taken):
            taken.update(region.nodes)
            found[region.nodes[-1]] = Found(region, family)
    return found


def keep_fast(found: dict[ir.Node, Found], kernels: Kernels) -> dict[ir.Node, Found]:
    """`found` without the layers that are faster in float; the account of each layer goes to the choices' notes."""
    kept: dict[ir.Node, Found] = {}
    for last, item in found.items():
        worth = True
        if isinstance(item.region, Layer):
            worth, account = precision(item.region, kernels)
            kernels.choices.integer[str(item.region.nodes[0].name)] = account
        if worth:
            kept[last] = item
    return kept


def make_rest_float(graph: ir.Graph, found: dict[ir.Node, Found]) -> None:
    """Give weighted operators outside the regions float constants, which float kernels want."""
    taken = {node for region in found.values() for node in region.nodes}
    for node in graph:
        if node.domain == "" and node.op_type in WEIGHTED and node not in taken:
            make_float(graph, node)


def emit(found: Found, kernels: Kernels, twins: Twins) -> None:
    """Put the region's kernel call in front of its last node."""
    found.family.emit(found.region, kernels, twins)
