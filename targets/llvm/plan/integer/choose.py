"""Which quantized layers run on integer kernels, and whether any does: what is estimated to be faster.

Both sides are counted in cycles of one core for one sample. Integer::

    max(price(tile) * steps * STEP, weights / BYTES) + COPY * bytes copied + FINISH * vectors stored

as for float kernels (see `choice`), with STEP what a step of one vector takes; or integer Winograd, with
its transforms in place of the copy. The float form is the best of `choice`, Winograd included; it pays for its inputs
becoming float and its results integers again. Winograd's float estimate is taken times `WINOGRAD`: its weights are 9 to
16 times those of the integer form and come from further away on a busy machine. Activations that don't fit the L2 cache
are paid for by either form, with a quarter of the bytes for the integer one.

Unless all layers together, as chosen, take clearly less than all of them in float, nothing runs on integers, and
nothing is rounded to 8 bits between layers (see `loosen`). Passes that quantize what is computed between the layers
count too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import onnx_ir as ir

from graphopt.targets.llvm.kernels import arithmetic, contract, depthwise_integer, gemm, tile, winograd_integer
from graphopt.targets.llvm.kernels.arithmetic import Name
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.plan import choice
from graphopt.targets.llvm.plan.integer.layers import Layer

STEP: dict[Name, float] = {
    "vpdpbusd": 0.55, "maddubs": 0.95, "maddwd": 0.8, "usdot": 0.55, "sdot": 0.55, "widen": 1.2,
}  # fmt: skip
"""Measured on a server with AVX-512, its AVX2 forms likewise; NEON taken to be like x86."""
WIDE = 0.6  # a step of `maddwd` where the weights are int16 in memory
COPY = 0.05  # cycles a byte
TRANSFORM = 0.25  # cycles an element of integer Winograd's transforms, at 8 lanes
WINOGRAD = 1.5
DEQUANTIZE, QUANTIZE = 0.3, 0.6  # cycles an element, at 8 lanes
FINISH, NARROW, ACTIVATION = 4.0, 2.0, 3.0
"""Cycles a vector that is stored as 8 bits beyond one of float32, more of them without AVX-512, and for a formula."""
SPREAD, TAP, NARROW_TAP = 2.0, 0.6, 0.35
"""Cycles a vector that a depthwise kernel copies, for a step of it or a tap in float32, and these without AVX-512."""
IN_FLOAT = 2.0  # cycles a vector less for the results of a depthwise kernel whose sums are float32
NEAR, FAR = 1 << 19, 4.5  # bytes of activations that stay in the L2 cache, and cycles take so many of those beyond
GAIN = 0.9
"""Part of its time in float32 that a model must be estimated to take at most: estimates are good to some 10 %, and a
model that isn't rounded is more accurate."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Cycles on integers, in float32, and those of the latter's borders with integers; how either is computed."""

    integer: float
    real: float
    borders: float
    how: tuple[str, str]

    @property
    def worth(self) -> bool:
        """Whether the layer alone is faster on integers, among others that are."""
        return self.integer <= self.real + self.borders

    def __str__(self) -> str:
        return (
            f"{'int8' if self.worth else 'float32'}: {self.how[0]} {self.integer:.0f} cycles, {self.how[1]} in float32 "
            f"{self.real:.0f} and {self.borders:.0f} for its borders"
        )


def estimate(layer: Layer, isa: Isa) -> Estimate:
    """What `layer` takes."""
    p = layer.problem
    c = p.conv
    positions = _product(p.rows) if p.rows is not None else c.oh * c.ow
    inputs = c.h * c.w * c.ci if p.rows is None else positions * c.ci
    vectors = positions * math.ceil(c.co // c.group / isa.lanes) * c.group
    if depthwise_integer.applies(c):
        vectors = positions * math.ceil(c.co / isa.lanes)
        own, real, how = _depthwise(layer, isa, positions)
    else:
        own, real, how = _contraction(layer, isa, positions, inputs)
    eight_bits = layer.finish.range is not None
    finish = FINISH if isa.lanes == 16 else FINISH + NARROW
    own += vectors * ((finish if eight_bits else finish / 2) + (ACTIVATION if layer.finish.formula.first else 0))
    borders = (DEQUANTIZE * inputs + (QUANTIZE * positions * c.co if eight_bits else 0)) * 8 / isa.lanes
    outputs = positions * c.co
    own, real = own + _moving(inputs + outputs * (1 if eight_bits else 4)), real + _moving(4 * (inputs + outputs))
    return Estimate(own, real, borders, how)


def _moving(nbytes: int) -> float:
    """Cycles that so many bytes of inputs and results take."""
    return max(0, nbytes - NEAR) / FAR


def _depthwise(layer: Layer, isa: Isa, positions: int) -> tuple[float, float, tuple[str, str]]:
    p = depthwise_integer.problem(layer.problem.conv, layer.problem.zero, isa)
    c = p.conv
    blocks, rows = math.ceil(c.co / isa.lanes), p.band()
    copied = -(-c.oh // rows) * p.lines(rows) * p.columns * blocks
    each = TAP if isa.lanes == 16 else NARROW_TAP
    own = SPREAD * copied + each * positions * blocks * c.kernel[0] * p.steps
    own -= IN_FLOAT * positions * blocks if p.dot is None else 0
    real = each * positions * blocks * math.prod(c.kernel)
    return own, real, ("depthwise by " + ("float32" if p.dot is None else p.dot.name), "depthwise")


def _contraction(layer: Layer, isa: Isa, positions: int, inputs: int) -> tuple[float, float, tuple[str, str]]:
    p = layer.problem
    c = p.conv
    dot = arithmetic.choose(isa, contract.as_runs(layer.weight, p))
    blocks = math.ceil(c.co // c.group / isa.lanes)
    line = positions if p.flat else c.ow
    shape = tile.choose(line, blocks, contract.room(isa, dot))
    steps = p.taps[0] * p.taps[1] * p.steps(dot)
    lines = c.group * (1 if p.flat else c.oh)
    products = lines * tile.price(shape, line, blocks) * steps * STEP[dot.name]
    direct = max(products, layer.weight.size / choice.BYTES) + (COPY * inputs if p.staged(dot) else 0)
    sums = _winograd(layer, dot, isa)
    g = gemm.Gemm(p.rows, c.ci, c.co) if p.rows is not None else None
    best = (choice.convolution(c, isa) if g is None else choice.product(g, isa))[0]
    real = best.cycles * (WINOGRAD if best.algorithm in choice.SCHEMES else 1)
    return min(direct, sums), real, (dot.name if direct <= sums else "winograd2 by maddwd", str(best))


def by_winograd(layer: Layer, isa: Isa) -> bool:
    """Whether an integer `layer` that isn't depthwise is computed by Winograd's sums."""
    return estimate(layer, isa).how[0].startswith("winograd2")


def _winograd(layer: Layer, dot: arithmetic.Dot, isa: Isa) -> float:
    """Cycles of `winograd_integer`; infinite where it doesn't apply."""
    if not winograd_integer.applies(layer.problem, dot, layer.weight, layer.bias, isa):
        return math.inf
    c = layer.problem.conv
    tiles, block, blocks = (
        winograd_integer.tiles(c),
        winograd_integer.tiles_at_once(c),
        math.ceil(c.co / isa.lanes),
    )
    shape = tile.choose(block, blocks, contract.room(isa, winograd_integer.DOT))
    steps = winograd_integer.POINTS * math.ceil(c.ci / 2)
    products = math.ceil(tiles / block) * tile.price(shape, block, blocks) * steps * WIDE
    weights = 2 * winograd_integer.POINTS * c.ci * c.co / choice.BYTES
    transforms = TRANSFORM * winograd_integer.POINTS * tiles * (c.ci + c.co) * 8 / isa.lanes
    return max(products, weights) + transforms + COPY * c.h * c.w * c.ci


def passes(nodes: Iterable[ir.Node], isa: Isa) -> float:
    """Cycles that quantizing takes where it is not the end of a layer; `nodes` are those outside of regions."""
    total = 0.0
    for node in nodes:
        shape = node.outputs[0].shape if node.op_type == "QuantizeLinear" and node.domain == "" else None
        sizes = [d for d in shape or () if isinstance(d, int)]
        total += (DEQUANTIZE + QUANTIZE) * math.prod(sizes) * 8 / isa.lanes if sizes else 0.0
    return total


def pays(estimates: Iterable[Estimate], between: float) -> tuple[bool, str]:
    """Whether integers pay for these layers of a model together with `passes` between them, and the account."""
    found = list(estimates)
    chosen = sum(e.integer if e.worth else e.real + e.borders for e in found) + between
    real = sum(e.real for e in found)
    worth = chosen <= GAIN * real
    return worth, f"{'int8' if worth else 'float32 throughout'}: all layers {chosen:.0f} cycles, {real:.0f} in float32"


def _product(rows: tuple[int | str, ...]) -> int:
    sizes = [r for r in rows if isinstance(r, int)]
    return math.prod(sizes) if len(sizes) == len(rows) else gemm.MANY
