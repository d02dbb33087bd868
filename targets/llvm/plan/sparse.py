"""Sparse kernels beside the dense ones: for layers whose constant weights are mostly zeros.

A sparse kernel's cycles for one sample are estimated as::

    tiles * (stored * (outputs * vectors * STEP + EACH) + visits * (2 * outputs * vectors + VISIT)) + TURN * turned

`stored` and `tiles` as in `Pattern`, `visits` the times that sums are taken up and laid down (blocks of input channels
times groups of output channels), `turned` the elements of input and output that change between channels-last and
channels-first. The constants were fitted to measurements of matrix products, 3x3 convolutions and long kernels along a
line at 50 and 90 % zeros. The kernel is a candidate where the estimate is below `SURE` of a bound on the best dense
kernel, which is charged for weights that come from the L3 cache and not from memory: it is not to lose there either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.targets.llvm.kernels import gemm
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.kernels.gemm import Gemm
from graphopt.targets.llvm.kernels.sparse_pattern import Lines, Pattern, grouped
from graphopt.targets.llvm.plan.choice import EFFICIENCY, FMAS, Candidate
from graphopt.targets.llvm.plan.kernels import Kernels

Array = np.ndarray[Any, Any]

MOST = 0.55  # part of the weights that are not zero up to which a sparse kernel is thought of
FULL = 0.75  # part of the stored weights that must not be zero for several output channels to share inputs
STEP, APART, EACH, VISIT, TURN = 0.65, 1.0, 1.0, 20.0, 0.9  # cycles; APART: a STEP whose vectors straddle cache lines
NEAR = 32 << 10  # bytes of the input's lines that stay in the L1 cache
FAR = 1.6  # times a STEP whose inputs come from the L2 cache
CACHED = 10.0  # bytes a cycle of dense weights, when they are in the L3 cache
SURE = 0.85
ACCUMULATORS = 16  # more than these, and LLVM keeps them in memory
UNITS = 8  # pieces to share out among threads, at least


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with sparse weights [CO, CI, KH, KW], and how many samples the dense candidates' estimate is for."""

    conv: Conv
    weight: Array
    samples: int = 1


def of_product(g: Gemm, weight: Array) -> Layer | None:
    """The product as a convolution of a line, for `weight` [K, CO]; an open number of rows is the batch's."""
    known = [r for r in g.rows if isinstance(r, int)]
    if len(known) < len(g.rows) - 1 or (len(known) < len(g.rows) and isinstance(g.rows[0], int)):
        return None
    rows = math.prod(known)
    n = 1 if len(known) == len(g.rows) else g.rows[0]
    if isinstance(n, str) and rows == 1:
        return None  # one position at a time, where dense kernels have many
    conv = Conv(n, 1, rows, g.k, g.co, (1, 1))
    return Layer(conv, weight.T[:, :, None, None], 1 if n == 1 else -(-gemm.MANY // rows))


def beside(dense: Sequence[Candidate], layer: Layer, isa: Isa, parallel: bool) -> list[Candidate]:
    """The candidates `dense` and, where it is surely faster than those, the best sparse one: the fastest first."""
    found = sparse(layer, isa, parallel)
    bound = min(dense[0].cycles, _dense_bound(layer, isa) * layer.samples)
    return sorted([*dense, *found], key=lambda c: c.cycles) if found and found[0].cycles < SURE * bound else [*dense]


def sparse(layer: Layer, isa: Isa, parallel: bool) -> list[Candidate]:
    """The best sparse candidate, or none where the weights have few zeros or the layer has groups."""
    c = layer.conv
    if c.group > 1 or c.oh * c.ow == 0 or np.count_nonzero(layer.weight) > MOST * layer.weight.size:
        return []
    nonzero, found = np.count_nonzero(layer.weight), list[Candidate]()
    for outputs in (1, 2, 4, 8):
        used = grouped(layer.weight, outputs)[1].sum(axis=(2, 3))
        if outputs == 1 or used.sum() * outputs * FULL <= nonzero:
            found += _shapes(c, used, outputs, isa, parallel, layer.samples)
    return sorted(found, key=lambda candidate: candidate.cycles)[:1]


def _shapes(c: Conv, used: Array, outputs: int, isa: Isa, parallel: bool, samples: int) -> list[Candidate]:
    """Tiles and blocks for groups of so many output channels, of which `used` [groups, CI] weights are stored."""
    lines, found = Lines(c), list[Candidate]()
    width = isa.lanes
    while width // 2 >= lines.positions:
        width //= 2
    along = -(-lines.positions // width)
    for most in {1, 2, 4, 8} & {*range(1, min(ACCUMULATORS, isa.registers // 2) // outputs + 1)}:
        count = -(-along // most)
        many = -(-along // count)
        unroll = 1
        while unroll * outputs * many < 8:
            unroll *= 2
        for inner in _inner(lines, width * many):
            starts = np.arange(0, c.ci, inner)
            stored = int((-(-np.add.reduceat(used, starts, axis=1) // unroll) * unroll).sum())
            step = math.lcm(isa.lanes, outputs)
            units = -(-c.co // step)
            chunk = -(-units // min(units, -(-(UNITS if parallel else 1) // count))) * step
            p = Pattern(c, width, many, outputs, unroll, inner, stored, chunk)
            found.append(Candidate("sparse", None, _cycles(p) * samples, p))
    return found


def _window(lines: Lines, tile: int) -> int:
    """Bytes of one input channel that a tile reads."""
    c = lines.conv
    reach = lines.places()[0].max() % lines.step
    return 4 * len(lines.phases) * min(lines.step, tile + int(reach)) if c.ci else 0


def _inner(lines: Lines, tile: int) -> set[int]:
    """Input channels of a block: what stays in the L1 cache, twice and four times that, or all of them."""
    ci, near = lines.conv.ci, max(1, NEAR // _window(lines, tile))
    return {-(-ci // -(-ci // min(ci, near * times))) for times in (1, 2, 4)}


def _cycles(p: Pattern) -> float:
    c, lines = p.conv, p.lines
    straight = c.kernel == (1, 1) and lines.step % 16 == 0
    each = (STEP if straight else APART) if p.outputs == 1 else STEP
    if _window(lines, p.tile) * p.inner > 1.1 * NEAR:
        each *= FAR
    work = p.stored * (p.outputs * p.vectors * each + EACH)
    visits = p.blocks * p.groups * (2 * p.outputs * p.vectors + VISIT)
    turned = lines.elements + p.rows * p.tiles * p.tile if lines.positions > 1 else c.ci
    return p.tiles * (work + visits) + TURN * turned


def _dense_bound(layer: Layer, isa: Isa) -> float:
    """Cycles of a dense kernel that multiplies everything, with the weights in the cache."""
    c = layer.conv
    inner = c.ci * math.prod(c.kernel)
    compute = max(c.oh * c.ow * math.ceil(c.co / isa.lanes), 8) * inner / FMAS / EFFICIENCY
    return max(compute, 4 * c.co * inner / CACHED)


def patterns(candidates: Sequence[Candidate]) -> list[Pattern]:
    """The patterns among them, which a kernel's shape depends on."""
    return [candidate.pattern for candidate in candidates if candidate.pattern is not None]


def arguments(how: Candidate, layer: Layer) -> dict[int, Array]:
    """The packed weights by their place among the arguments of a sparse kernel."""
    return {} if how.pattern is None else dict(enumerate(how.pattern.pack(layer.weight), start=1))


def constants(
    p: Pattern, weight: ir.Value, array: Array, kernels: Kernels, bias: Hashable, shift: Array
) -> list[ir.Value]:
    """The packed weights and the bias in the order that the kernel takes them; `bias` is what `shift` stems from."""
    parts = [*p.pack(array), np.concatenate([shift, np.zeros(p.rows - p.conv.co, np.float32)])]
    names = ("values", "places", "starts", "targets", "bias")
    return [
        kernels.constant(("sparse", name, weight, bias, p), f"{weight.name}_{name}", lambda part=part: part)
        for name, part in zip(names, parts, strict=True)
    ]


def note(node: ir.Node, chosen: Candidate, dense: Sequence[Candidate], layer: Layer, kernels: Kernels) -> None:
    """Say in the report which kernel a layer with many zeros has, and why."""
    density = np.count_nonzero(layer.weight) / layer.weight.size
    if density > MOST:
        return
    others = [dense[0]] if chosen.algorithm == "sparse" else sparse(layer, kernels.isa, kernels.parallel)
    beside_it = "".join(f", and {other.cycles / layer.samples:.3g} for {other}" for other in others)
    why = "" if others else "; no sparse kernel covers it"
    kernels.choices.sparse[str(node.name)] = (
        f"{chosen}: {1 - density:.1%} of {layer.weight.size} weights are zero; "
        f"{chosen.cycles / layer.samples:.3g} cycles estimated{beside_it}{why}"
    )
