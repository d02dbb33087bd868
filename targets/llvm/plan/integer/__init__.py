"""Quantized regions onto integer kernels.

A module of `FAMILIES` has ``find(nodes, taken) -> list[Region]``, in which a region's nodes are not among those `taken`
by families before it, and ``emit(region, kernels, twins)``, which puts the kernel call in front of the region's last
node and makes its result the twin of the region's value. Integer values that kernels read and write are uint8 (see
`targets.integer.signs`), with twins like float ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType

import onnx_ir as ir

from graphopt.targets.integer.signs import make_unsigned
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.plan.choice import Choices
from graphopt.targets.llvm.plan.integer import behind, calls, few_bits, pools
from graphopt.targets.llvm.plan.integer.choose import Estimate, estimate, passes, pays
from graphopt.targets.llvm.plan.integer.few_bits import Dense
from graphopt.targets.llvm.plan.integer.layers import Layer
from graphopt.targets.llvm.plan.integer.loosen import loosen
from graphopt.targets.llvm.plan.integer.region import Region
from graphopt.targets.llvm.plan.kernels import Kernels
from graphopt.targets.llvm.plan.layout import Twins, image
from graphopt.targets.llvm.plan.weights import WEIGHTED, make_float

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


def loosen_slow(model: ir.Model, prepare: Callable[[ir.Model], None], isa: Isa, choices: Choices) -> None:
    """Make `model` float32 throughout, in place, if that is faster. `prepare`: what precedes the search for regions."""
    if not any(node.op_type == "QuantizeLinear" for node in model.graph):
        return
    trial = model.clone()
    prepare(trial)
    found = find(list(trial.graph))
    known = estimates(found, isa)
    if not known:
        return
    covered = {node for item in found.values() for node in item.nodes}
    between = passes([node for node in trial.graph if node not in covered], isa)
    worth, choices.integer["the model"] = pays(known.values(), between)
    if not worth:
        choices.integer.update({str(found[last].nodes[0].name): str(guess) for last, guess in known.items()})
        make_unsigned(model)
        loosen(model)


def find(nodes: Sequence[ir.Node]) -> dict[ir.Node, Found]:
    """The region that ends at a node."""
    found: dict[ir.Node, Found] = {}
    taken: set[ir.Node] = set()
    for family in FAMILIES:
        for region in family.find(nodes, taken):
            taken.update(region.nodes)
            found[region.nodes[-1]] = Found(region, family)
    return found


def estimates(found: Mapping[ir.Node, Found], isa: Isa) -> dict[ir.Node, Estimate]:
    """What the layers among `found` take, by their last nodes."""
    layers = {last: item.region for last, item in found.items() if isinstance(item.region, Layer)}
    return {last: estimate(layer, isa) for last, layer in layers.items()}


def keep_fast(found: Mapping[ir.Node, Found], kernels: Kernels) -> dict[ir.Node, Found]:
    """`found` without the layers that are faster in float; the account of each layer goes to the choices' notes."""
    known: dict[ir.Node, Estimate | few_bits.Place] = dict(estimates(found, kernels.isa))
    if kernels.choices.unpack:
        known.update({last: few_bits.place(f.region) for last, f in found.items() if isinstance(f.region, Dense)})
    for last, guess in known.items():
        kernels.choices.integer[str(found[last].region.nodes[0].name)] = str(guess)
    return {last: item for last, item in found.items() if last not in known or known[last].worth}


def wanted(found: Iterable[Found]) -> set[ir.Value]:
    """The 8-bit values that convolutions among `found` read channels-last."""
    layers = [item.region for item in found if isinstance(item.region, Layer)]
    return {layer.x for layer in layers if layer.problem.rows is None and image(layer.x) is not None}


def make_rest_float(graph: ir.Graph, found: dict[ir.Node, Found]) -> None:
    """Give weighted operators outside the regions float constants, which float kernels want."""
    taken = {node for region in found.values() for node in region.nodes}
    for node in graph:
        if node.domain == "" and node.op_type in WEIGHTED and node not in taken:
            make_float(graph, node)


def emit(found: Found, kernels: Kernels, twins: Twins) -> None:
    """Put the region's kernel call in front of its last node."""
    found.family.emit(found.region, kernels, twins)
