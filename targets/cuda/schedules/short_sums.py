"""Sums of few terms, as in a depthwise convolution: each thread computes elements of the result by itself.

TVM's rules give a row of threads to each element, who then add up what they have: with 9 terms for 32 threads most of
them idle, and the exchange takes longer than the sum.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.dlight.analysis import get_root_block
from tvm.s_tir.dlight.gpu.matmul import get_reduction_blocks
from tvm.sym import Analyzer

THREADS = 256
MOST = 64
"""Terms."""


class ShortSums:
    """A rule in the manner of dlight's."""

    def apply(self, function: tirx.PrimFunc, target: Any, _: bool) -> s_tir.Schedule | None:
        """The schedule, or None for a function that has not one reduction, of a few terms."""
        sch: Any = s_tir.Schedule(function, error_render_level="none")
        found: Any = get_reduction_blocks(sch, sch.get_child_blocks(get_root_block(sch)))
        if not found or not _terms(sch.get(found[0])) <= MOST:
            return None
        total = found[0]
        _inline_before(sch, total, None)
        last = _inline_after(sch, total)
        loops = list(zip(sch.get_loops(last), map(_is_spatial, sch.get(last).iter_vars), strict=True))
        spatial = [loop for loop, is_spatial in loops if is_spatial]
        sch.reorder(*spatial, *(loop for loop, is_spatial in loops if not is_spatial))
        if len(spatial) > 1:  # apart, so that the division of the others by their sizes stays simple for an open batch
            sch.bind(spatial.pop(0), "blockIdx.y")
        block, thread = sch.split(sch.fuse(*spatial), [None, THREADS])
        sch.bind(block, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        if last != total:
            sch.set_scope(total, 0, "local")
            sch.compute_at(total, thread)
        return sch


def _is_spatial(axis: Any) -> bool:
    return axis.iter_type == tirx.IterVar.DataPar


def _terms(block: Any) -> int:
    """How many there are in each sum; more than `MOST` where that is not known."""
    number = 1
    for axis in block.iter_vars:
        extent: Any = Analyzer().simplify(axis.dom.extent)
        if not _is_spatial(axis):
            number *= int(extent) if isinstance(extent, tirx.IntImm) else MOST + 1
    return number


def _inline_before(sch: Any, block: Any, but: Any) -> None:
    """What `block` reads is computed where it reads it, except the result of the block `but`."""
    while producers := [one for one in sch.get_producers(block) if but is None or sch.get(one) != sch.get(but)]:
        for producer in producers:
            sch.compute_inline(producer)


def _inline_after(sch: Any, total: Any) -> Any:
    """What follows the sum, as one block; the sum itself where nothing does."""
    while consumers := sch.get_consumers(total):
        _inline_before(sch, consumers[0], total)
        if len(consumers) == 1 and not sch.get_consumers(consumers[0]):
            return consumers[0]
        sch.compute_inline(consumers[0])
    return total
