"""The Winograd schemes F(2x2, 3x3) and F(4x4, 3x3), and the convolutions they apply to."""

from __future__ import annotations

import dataclasses
import math

from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Isa, pieces

CACHE = 3 << 19  # bytes of L2 for a block's transformed inputs and products
RESIDENT = 1 << 20  # bytes of transformed weights that stay in L2 from block to block
SCATTERED = 6  # see `traffic`; measured
SMALL = 14  # tiles of a block beside resident weights


@dataclasses.dataclass(frozen=True)
class Scheme:
    """F(m x m, 3x3): the matrices of the formula in `winograd`; `a` is the size of an input tile."""

    m: int
    bt: tuple[tuple[int, ...], ...]
    g: tuple[tuple[float, ...], ...]
    at: tuple[tuple[int, ...], ...]

    @property
    def a(self) -> int:
        """``m + 2``."""
        return self.m + 2

    def tiles(self, c: Conv) -> int:
        """Tiles of an image."""
        return -(-c.oh // self.m) * -(-c.ow // self.m)


F2 = Scheme(
    2,
    ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    ((1, 1, 1, 0), (0, 1, -1, -1)),
)
F4 = Scheme(
    4,
    (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)


def applies(c: Conv, isa: Isa) -> bool:
    """3x3, stride 1, one group, channels in few runs: the transforms are written out for each width of vector."""
    ones = c.strides == c.dilations == (1, 1)
    if c.kernel != (3, 3) or not ones or c.group != 1 or max(c.pads) > 2 or min(c.ci, c.co) < isa.lanes:
        return False
    return all(len(pieces(channels % isa.lanes, isa.lanes)) <= 1 for channels in (c.ci, c.co))


def traffic(c: Conv, scheme: Scheme, block: int) -> int:
    """Bytes from beyond the L2 cache for one image in blocks of so many tiles.

    The transformed weights come once for each block, unless they stay in the cache. Of a block's transformed inputs and
    products, what the cache doesn't hold is written and read in (m+2)^2 strands; a byte of that took as long as
    `SCATTERED` bytes of weights.
    """
    weights, held = 4 * scheme.a**2 * c.ci * c.co, 4 * scheme.a**2 * (c.ci + c.co) * block
    blocks = -(-scheme.tiles(c) // block)
    return weights * (1 if weights <= RESIDENT else blocks) + SCATTERED * blocks * max(0, held - CACHE)


def tiles_at_once(c: Conv, scheme: Scheme) -> int:
    """Tiles in a block: of blocks of about one size, the one with the least `traffic`; the smallest of equals."""
    tiles = scheme.tiles(c)
    blocks = {math.ceil(tiles / count) for count in range(1, math.ceil(tiles / SMALL) + 1)}
    return min(blocks, key=lambda block: (traffic(c, scheme, block), block))
