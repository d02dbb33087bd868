"""One general schedule for every kernel: vectorised along the contiguous axis, tiled in registers, parallel outside.

TVM's CPU pipeline emits loops as the operator's definition lists them, with the reduction innermost. Here each
function that fusion leaves is rewritten block by block:

- chains of elementwise blocks become one block;
- a reduction (convolution, matrix product, pooling) with output axes ``S.. u .. v`` and reduction axes ``R`` runs as
  ``parallel S, u/U, v/V: acc[U][V] = 0; for R: for U (unrolled): for V (vector): acc += ..; epilogue on acc``,
  where ``v`` is the last output axis and ``u`` is an axis along which the operand that holds ``v`` is read again;
- an elementwise block runs parallel over its outer axes and vectorised along the last one.

Every step is a rewrite that `s_tir.Schedule` checks to be equivalent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import ScheduleError
from tvm.s_tir.dlight.analysis import IterInfo, SBlockInfo, normalize_prim_func

from graphopt.targets.llvm.cpu import Cpu

ACCUMULATORS = 8  # independent sums in flight: two FMA units of latency 4
PARALLEL_FROM = 1 << 14  # iterations below which handing work to threads costs more than it brings


def schedule_module(module: tvm.IRModule, cpu: Cpu, parallel: bool) -> tuple[tvm.IRModule, list[str]]:
    """Schedule every TIR function of `module` for the vectors of `cpu`, with or without threads.

    Returns the module, and the names of the functions that had to stay as they were.
    """
    functions = dict(module.functions_items())
    left: list[str] = []
    for name, function in functions.items():
        if isinstance(function, tirx.PrimFunc):
            try:
                functions[name] = _Kernel(function, cpu.lanes, parallel).scheduled()
            except ScheduleError:
                left.append(name.name_hint)
    return tvm.IRModule(functions, attrs=module.attrs), left  # pyright: ignore[reportAttributeAccessIssue]


class _Kernel:
    """One function on its way through the schedule."""

    def __init__(self, function: tirx.PrimFunc, lanes: int, parallel: bool) -> None:
        self.function, self.lanes, self.parallel = function, lanes, parallel
        self.schedule = s_tir.Schedule(function)

    def scheduled(self) -> tirx.PrimFunc:
        blocks = normalize_prim_func(self.schedule)
        if blocks is None:
            raise ScheduleError("not made of plain blocks")  # sorting, scatter
        blocks = self._inline(blocks)
        done: set[str] = set()
        for block in blocks:
            if block.is_reduction():
                done |= self._tile_reduction(block, self._epilogue(block, blocks))
        for block in blocks:
            if block.is_injective() and block.iters and block.name not in done:
                self._vectorise(block)
        return self.schedule.mod["main"].with_attr("tirx.is_scheduled", True)

    def _inline(self, blocks: Sequence[SBlockInfo]) -> list[SBlockInfo]:
        """Inline each elementwise block into its only consumer, if that is elementwise as well."""
        left: list[SBlockInfo] = []
        for block in blocks:
            consumer = self._only_consumer(block, blocks) if block.is_injective() else None
            if consumer is not None and consumer.is_injective():
                try:
                    self.schedule.compute_inline(block.block_rv)
                    continue
                except ScheduleError:  # an output of the function, or read through a layout it can't invert
                    pass
            left.append(block)
        return left

    def _epilogue(self, block: SBlockInfo, blocks: Sequence[SBlockInfo]) -> SBlockInfo | None:
        """The only consumer of a reduction, if it is elementwise on the reduction's output axes in their order."""
        consumer = self._only_consumer(block, blocks)
        if consumer is None or not consumer.is_injective():
            return None
        written = self._statement(block).writes[0].source
        reads = [region for region in self._statement(consumer).reads if region.source.same_as(written)]
        axes = [axis.var for axis in consumer.iters]
        spatial = [str(axis.dom) for axis in block.iters if axis.kind == "S"]
        if len(reads) != 1 or [str(extent) for extent in consumer.dom()] != spatial:
            return None
        indices = [extent.min for extent in reads[0].region if not isinstance(extent.min, tirx.IntImm)]
        same = len(indices) == len(axes) and all(map(tirx.Expr.same_as, indices, axes))
        return consumer if same else None

    def _only_consumer(self, block: SBlockInfo, blocks: Sequence[SBlockInfo]) -> SBlockInfo | None:
        consumers = self.schedule.get_consumers(block.block_rv)
        if len(consumers) != 1:
            return None
        statement: Any = self.schedule.get(consumers[0])
        return next((other for other in blocks if other.name == statement.name_hint), None)

    def _statement(self, block: SBlockInfo) -> Any:
        """The block's TIR: its reads, writes and iterators."""
        return self.schedule.get(block.block_rv)

    def _tile_reduction(self, block: SBlockInfo, epilogue: SBlockInfo | None) -> set[str]:
        """Tile one reduction; returns the name of the block that moved into its tile."""
        schedule: Any = self.schedule  # its variadic methods are annotated as taking lists
        spatial = [axis for axis in block.iters if axis.kind == "S"]
        reduced = [axis.loop_rv for axis in block.iters if axis.kind == "R"]
        if not spatial or not reduced or len(spatial) + len(reduced) != len(block.iters):
            return set()
        last, reused = spatial[-1], self._reused_axis(block, spatial)
        v_outer, v_inner = schedule.split(last.loop_rv, factors=[None, self._width(last.dom)])
        outer = [axis.loop_rv for axis in spatial[:-1]] + [v_outer]
        inner = [v_inner]
        if reused is not None:
            u_outer, u_inner = schedule.split(reused.loop_rv, factors=[None, _divisor(reused.dom, ACCUMULATORS)])
            outer[spatial.index(reused)] = u_outer
            inner = [u_inner, v_inner]
        schedule.reorder(*outer, *reduced, *inner)
        self._parallel(outer[:-1], block)
        tail = self._attach_tail(block, epilogue, v_outer)
        vector = self._contiguous(block, last)
        for part in (tail, block.block_rv):
            loops = schedule.get_loops(part)
            schedule.vectorize(loops[-1]) if vector else schedule.unroll(loops[-1])
            if reused is not None:
                schedule.unroll(loops[-2])
        schedule.decompose_reduction(block.block_rv, reduced[0])
        moved: Any = schedule.get(tail)
        return {moved.name_hint}

    def _attach_tail(self, block: SBlockInfo, epilogue: SBlockInfo | None, loop: Any) -> Any:
        """Keep the sums in registers: what reads a tile, the epilogue or else a copy, follows it at once."""
        if epilogue is not None:
            try:
                self.schedule.reverse_compute_at(epilogue.block_rv, loop, preserve_unit_loops=True)
                self.schedule.set_scope(block.block_rv, 0, "local")
                return epilogue.block_rv
            except ScheduleError:  # it reads something computed after the reduction as well
                pass
        copy = self.schedule.cache_write(block.block_rv, 0, "local")
        self.schedule.reverse_compute_at(copy, loop, preserve_unit_loops=True)
        return copy

    def _reused_axis(self, block: SBlockInfo, spatial: list[IterInfo]) -> IterInfo | None:
        """An output axis that the operand holding the last axis does not depend on."""
        operands = [_variables(region.region) for region in self._statement(block).reads]
        holders = [names for names in operands if spatial[-1].var.name in names]
        if len(operands) < 2 or len(holders) != 1:
            return None
        free = [axis for axis in spatial[:-1] if axis.var.name not in holders[0]]
        return next((axis for axis in reversed(free) if _divisor(axis.dom, ACCUMULATORS) > 1), None)

    def _contiguous(self, block: SBlockInfo, axis: IterInfo) -> bool:
        """Whether every operand that depends on `axis` does so in its last dimension only."""
        regions = [region.region for region in self._statement(block).reads]
        return not any(axis.var.name in _variables(region[:-1]) for region in regions)

    def _vectorise(self, block: SBlockInfo) -> None:
        """An elementwise block: parallel over the outer axes, vectorised along the last."""
        *outer, last = block.iters
        v_outer, v_inner = self.schedule.split(last.loop_rv, factors=[None, self._width(last.dom)])
        self.schedule.vectorize(v_inner)
        self._parallel([axis.loop_rv for axis in outer] or [v_outer], block)

    def _parallel(self, loops: list[Any], block: SBlockInfo) -> None:
        """Run `loops` in parallel, as one, where the block is known to be large enough.

        Not where an extent is symbolic: with open image sizes such loops gave wrong values now and then on two
        threads (the angle classifier, one call in seven), and never without.
        """
        size = _size(block)
        if self.parallel and loops and not isinstance(size, tuple) and size >= PARALLEL_FROM:
            self.schedule.parallel(self.schedule.fuse(*loops))

    def _width(self, extent: Any) -> int:
        """Vector length along an axis: its largest divisor that fits a register, or two where that is a poor fit."""
        width = _divisor(extent, self.lanes)
        return width if 2 * width > self.lanes else _divisor(extent, 2 * self.lanes)


def _variables(region: Any) -> set[str]:
    return {var.name for extent in region for var in tirx.analysis.undefined_vars(extent.min)}


def _divisor(extent: Any, limit: int) -> int:
    """The largest divisor of `extent` up to `limit`; 1 for a symbolic extent."""
    if not isinstance(extent, int):
        return 1
    return next((divisor for divisor in range(min(limit, extent), 0, -1) if extent % divisor == 0), 1)


def _size(block: SBlockInfo) -> int | tuple[str, ...]:
    """Iterations of a block; the list of its extents where one of them is symbolic."""
    extents: list[Any] = block.dom()
    return math.prod(extents) if all(isinstance(extent, int) for extent in extents) else tuple(map(str, extents))
