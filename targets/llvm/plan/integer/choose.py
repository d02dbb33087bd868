"""Which quantized layers run on integer kernels: those that are estimated to be faster so.

Both sides are counted in cycles of one core for one sample. Integer::

    max(price(tile) * steps * STEP, weights / BYTES) + COPY * bytes copied

as for float kernels (see `choice`), with STEP what a step of one vector takes. The float form is the best of `choice`,
Winograd included; it pays for its inputs becoming float and its results integers again. Winograd's estimate is taken
times `WINOGRAD`: its weights are 9 to 16 times those of the integer form and come from further away on a busy machine.
"""

from __future__ import annotations

import math

from graphopt.targets.llvm.kernels import arithmetic, contract, gemm, tile
from graphopt.targets.llvm.kernels.arithmetic import Name
from graphopt.targets.llvm.plan import choice
from graphopt.targets.llvm.plan.integer.layers import Layer
from graphopt.targets.llvm.plan.kernels import Kernels

STEP: dict[Name, float] = {
    "vpdpbusd": 0.55, "maddubs": 0.95, "maddwd": 0.8, "usdot": 0.55, "sdot": 0.55, "widen": 1.2,
}  # fmt: skip
"""Measured on a server with AVX-512, its AVX2 forms likewise; NEON taken to be like x86."""
COPY = 0.05  # cycles a byte
WINOGRAD = 1.5
DEQUANTIZE, QUANTIZE = 0.3, 0.6  # cycles an element, at 8 lanes


def precision(layer: Layer, kernels: Kernels) -> tuple[bool, str]:
    """Whether `layer` runs on an integer kernel, and the account of it."""
    p, isa = layer.problem, kernels.isa
    c = p.conv
    if contract.is_depthwise(p):
        return True, "int8, summed exactly in float32"
    dot = arithmetic.choose(isa, contract.as_runs(layer.weight, p))
    positions = _product(p.rows) if p.rows is not None else c.oh * c.ow
    blocks = math.ceil(c.co // c.group / isa.lanes)
    line = positions if p.flat else c.ow
    shape = tile.choose(line, blocks, contract.room(isa, dot))
    steps = p.taps[0] * p.taps[1] * p.steps(dot)
    lines = c.group * (1 if p.flat else c.oh)
    products = lines * tile.price(shape, line, blocks) * steps * STEP[dot.name]
    copied = c.h * c.w * c.ci if p.rows is None else positions * c.ci
    own = max(products, layer.weight.size / choice.BYTES) + (COPY * copied if p.staged(dot) else 0)
    g = gemm.Gemm(p.rows, c.ci, c.co) if p.rows is not None else None
    best = (choice.convolution(c, isa) if g is None else choice.product(g, isa))[0]
    cycles = best.cycles * (WINOGRAD if best.algorithm in choice.SCHEMES else 1)
    borders = DEQUANTIZE * copied + (QUANTIZE * positions * c.co if layer.finish.range is not None else 0)
    borders *= 8 / isa.lanes
    account = f"{dot.name} {own:.0f} cycles, {best} in float32 {cycles:.0f} and {borders:.0f} for its borders"
    if own <= cycles + borders:
        return True, f"int8: {account}"
    return False, f"float32: {account}"


def _product(rows: tuple[int | str, ...]) -> int:
    sizes = [r for r in rows if isinstance(r, int)]
    return math.prod(sizes) if len(sizes) == len(rows) else gemm.MANY
