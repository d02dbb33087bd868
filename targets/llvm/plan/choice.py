"""Which kernel computes a convolution or a product: every candidate for it, ranked by an estimate of its cycles.

The first candidate is used, unless measurements of them are known (see `targets/llvm/tune.py`). The estimate is for
one sample and one core, the longer of arithmetic and memory traffic, for all but Winograd::

    max(price(tile) * inner / FMAS / EFFICIENCY, weights / BYTES)

where `price` (see `tile`) is what the tiles cost a step in multiply-adds or in loads, with the work that partial tiles
waste, `inner` the number of steps (kernel height * width * input channels), and `weights` the bytes that come from
memory once. Winograd's products are counted likewise, with EFFICIENCY of its own, and its transforms on top.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from tvm import tirx

from graphopt.packed import Packed
from graphopt.targets.llvm.kernels import beside, gemm, line, tile, winograd_line
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.kernels.sparse_pattern import Pattern
from graphopt.targets.llvm.kernels.winograd_scheme import F2, F4, Scheme, applies, tiles_at_once, traffic

FMAS = 2.0  # vector multiply-adds a cycle: two units
BYTES = 3.0  # a cycle that one core of a server streams from memory
EFFICIENCY, WINOGRAD = 0.95, 0.85  # of the direct kernels and of Winograd's products
TRANSFORM = 0.39  # cycles for each element of a transform, channels in vectors

Algorithm = Literal["depthwise", "gemm", "winograd2", "winograd4", "winograd-line", "line", "direct", "sparse"]
SCHEMES: dict[Algorithm, Scheme] = {"winograd2": F2, "winograd4": F4}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to compute a problem. `tile`: None where the kernel has no choice of it. `pattern`: of a sparse one."""

    algorithm: Algorithm
    tile: tile.Shape | None
    cycles: float
    pattern: Pattern | None = None

    def __str__(self) -> str:
        if self.pattern is not None:
            return f"{self.algorithm} {self.pattern.tile}x{self.pattern.outputs}"
        return self.algorithm if self.tile is None else f"{self.algorithm} {self.tile.rows}x{self.tile.cols}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """What there is to choose from, the best by estimate first; `make(candidate, symbol)` builds a kernel.

    `constants`: its arguments that it can't be measured without, by their place.
    """

    candidates: Sequence[Candidate]
    make: Callable[[Candidate, str], tirx.PrimFunc]
    constants: Callable[[Candidate], Mapping[int, np.ndarray[Any, Any]]] = lambda _: {}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A candidate, and the microseconds that it and others took, by their text, where that was measured."""

    candidate: Candidate
    microseconds: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])


@dataclasses.dataclass
class Choices:
    """`known` choices by the text of the problem; `problems` met and what was `made` of them (by symbol) are noted.

    `integer`: name of a quantized layer -> whether it runs on integers, and why. `sparse`: name of a layer with many
    zeros -> its kernel, and why. `packed`: name of a float32 constant -> the few bits that it is made of. `unpack`:
    whether those bits are all that is stored, and the constants are made of them when the program is loaded.
    """

    known: Mapping[str, Choice] = dataclasses.field(default_factory=dict[str, Choice])
    problems: dict[str, Problem] = dataclasses.field(default_factory=dict[str, Problem])
    made: dict[str, Choice] = dataclasses.field(default_factory=dict[str, Choice])
    integer: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    sparse: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    packed: dict[str, Packed] = dataclasses.field(default_factory=dict[str, Packed])
    unpack: bool = False

    def choose(self, what: Hashable, problem: Problem) -> Choice:
        """The known choice for `what` (its text says all that matters), else the first candidate."""
        text = repr(what)
        self.problems[text] = problem
        return self.known.get(text) or Choice(problem.candidates[0])


def convolution(c: Conv, isa: Isa) -> list[Candidate]:
    """Ways to compute `c`, the fastest by estimate first."""
    if c.group == c.ci == c.co > 1:
        work = c.oh * c.ow * math.prod(c.kernel) * math.ceil(c.co / isa.lanes)
        return [Candidate("depthwise", None, work / FMAS)]
    if is_product(c):
        return product(gemm.Gemm((c.n, c.h, c.w), c.ci, c.co), isa)
    along_line = line.applies(c)
    p = beside.columns(c, isa.lanes)
    k = beside.wide(c, p)
    inner, blocks = k.ci // k.group * math.prod(k.kernel), math.ceil(k.co // k.group / isa.lanes)
    found = _tiled("line" if along_line else "direct", c.oh * c.group, c.ow // p, blocks, inner, k.co * inner, isa)
    if winograd_line.applies(c, isa):
        found += _winograd_line(c, isa)
    if not applies(c, isa):
        return sorted(found, key=lambda candidate: candidate.cycles)
    blocks = math.ceil(c.co / isa.lanes)
    for algorithm, scheme in SCHEMES.items():
        tiles, products = scheme.tiles(c), scheme.a**2
        block = tiles_at_once(c, scheme)
        shapes = tile.ranked(block, blocks, isa)
        compute = tiles * products * c.ci * c.co / isa.lanes / FMAS / WINOGRAD
        memory = traffic(c, scheme, block) / BYTES
        transforms = tiles * products * (c.ci + c.co) * TRANSFORM
        best = tile.price(shapes[0], block, blocks)
        for shape in shapes:
            waste = tile.price(shape, block, blocks) / best
            found.append(Candidate(algorithm, shape, max(compute * waste, memory) + transforms))
    return sorted(found, key=lambda candidate: candidate.cycles)


def _winograd_line(c: Conv, isa: Isa) -> list[Candidate]:
    """Winograd along a line, by each tile."""
    s, tiles, blocks = winograd_line.scheme(c.kernel[1]), winograd_line.tiles(c), math.ceil(c.co / isa.lanes)
    inner, transformed = s.blocks * c.ci, (tiles + s.blocks - 1) * c.ci + tiles * c.co
    memory = 4 * s.a * inner * c.co / BYTES
    found: list[Candidate] = []
    for shape in tile.ranked(tiles, blocks, isa):
        products = s.a * tile.price(shape, tiles, blocks) * inner / FMAS / WINOGRAD
        found.append(Candidate("winograd-line", shape, max(products, memory) + s.a * transformed * TRANSFORM))
    return found


def is_product(c: Conv) -> bool:
    """Whether `c` is a matrix product of positions by channels."""
    return c.kernel == c.strides == (1, 1) and c.pads == (0, 0, 0, 0) and c.group == 1


def product(g: gemm.Gemm, isa: Isa) -> list[Candidate]:
    """Ways to compute `g`, the fastest by estimate first."""
    rows = math.prod(r for r in g.rows if isinstance(r, int)) if g.rows and _known(g.rows) else gemm.MANY
    return _tiled("gemm", 1, rows, math.ceil(g.co / isa.lanes), g.k, g.k * g.co, isa)


def _known(sizes: Sequence[int | str]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _tiled(
    algorithm: Algorithm, repeats: int, rows: int, blocks: int, inner: int, weights: int, isa: Isa
) -> list[Candidate]:
    """`repeats` outputs of `rows` positions by `blocks` vectors, in order of the tile's rank."""
    memory = 4 * weights / BYTES
    return [
        Candidate(algorithm, s, max(repeats * tile.price(s, rows, blocks) * inner / FMAS / EFFICIENCY, memory))
        for s in tile.ranked(rows, blocks, isa)
    ]
