"""Times of kernels as times of the source model's layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from graphopt.measure.profile import Profile


@dataclasses.dataclass(frozen=True)
class Layer:
    """All kernels whose most costly source node is `name`; `share`: of all layers. `nodes`: what they compute."""

    name: str
    ms: float
    share: float
    kernels: list[str]
    nodes: list[str]


def layers(profile: Profile, macs: Mapping[str, int]) -> list[Layer]:
    """The layers of a profile, the slowest first. `macs`: of each source node.

    What computes no node (TVM's memory and shapes) has no layer: timing each small call costs more than the call.

    A kernel that computes several nodes (Conv, Add, Relu) counts for the one with the most multiply-accumulates: the
    others cost little beside it, and their time can't be told apart. One of several convolutions (a kernel called for
    many layers) is divided among those in proportion to their multiply-accumulates.
    """
    found: dict[str, Layer] = {}
    for kernel in profile.kernels:
        for name, part in _owners(kernel.nodes, kernel.calls, macs).items():
            known = found.get(name) or Layer(name, 0.0, 0.0, [], [])
            found[name] = Layer(
                name,
                known.ms + kernel.ms * part,
                0.0,
                [*known.kernels, kernel.name],
                list(dict.fromkeys([*known.nodes, *kernel.nodes])) if part == 1 else [name],
            )
    total = sum(layer.ms for layer in found.values()) or 1.0
    shared = [dataclasses.replace(layer, share=layer.ms / total) for layer in found.values()]
    return sorted(shared, key=lambda layer: (-layer.ms, layer.name))


def _owners(nodes: list[str], calls: int, macs: Mapping[str, int]) -> dict[str, float]:
    """Which nodes a kernel's time goes to, and how much of it to each."""
    if not nodes:
        return {}
    heavy = sorted((n for n in dict.fromkeys(nodes) if macs.get(n, 0)), key=lambda n: -macs[n])
    if not heavy or calls == 1:
        return {(heavy or nodes)[0]: 1.0}
    heavy = heavy[:calls]
    total = sum(macs[n] for n in heavy)
    return {n: macs[n] / total for n in heavy}
