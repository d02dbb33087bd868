"""A product's axes sorted into ``C[s,i,j] += A[s,i,k] * B[s,k,j]``: in a convolution i is of pixels, k of taps."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.s_tir.dlight.gpu.matmul import IterKind, detect_iter_traits, make_iter_fusion_index_map

S, I, J, K = IterKind.kIter_S, IterKind.kIter_I, IterKind.kIter_J, IterKind.kIter_K  # noqa: E741


def tiles(block: Any, size: int) -> int:
    """How many tiles of `size` x `size` the product has; open dimensions count as 1. 0 for what is no product."""
    found: Any = detect_iter_traits(block)
    if found is None:
        return 0
    extents = {kind: [_fixed(trait) for trait in found[3] if trait.kind == kind] for kind in (S, I, J)}
    return math.prod(extents[S]) * math.prod(-(-math.prod(extents[kind]) // size) for kind in (I, J))


def _fixed(trait: Any) -> int:
    return int(trait.extent) if isinstance(trait.extent, tirx.IntImm) else 1


def index_maps(block: Any, tile: int) -> tuple[tirx.IndexMap, ...] | None:
    """Of the block, of A, B and C; None for what is no such product.

    An open dimension (a batch) beside fixed ones whose product is no multiple of `tile` joins s in place of i: TVM
    can't prove then that tiles over both cover all there is.
    """
    found: Any = detect_iter_traits(block)
    if found is None:
        return None
    a, b, c, whole = found
    rows = [trait for trait in whole if trait.kind == I]
    fixed = [int(trait.extent) for trait in rows if isinstance(trait.extent, tirx.IntImm)]
    if fixed and math.prod(fixed) % tile:
        for trait in rows:
            if not isinstance(trait.extent, tirx.IntImm):
                trait.kind = S
    orders = ((whole, [S, I, J, K]), (a, [S, I, K]), (b, [S, K, J]), (c, [S, I, J]))
    return tuple(make_iter_fusion_index_map(traits, order) for traits, order in orders)
