"""A product's axes sorted into ``C[s,i,j] += A[s,i,k] * B[s,k,j]``: in a convolution i is of pixels, k of taps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.s_tir.dlight.gpu.matmul import IterKind, detect_iter_traits, make_iter_fusion_index_map
from tvm.sym import Analyzer

S, I, J, K = IterKind.kIter_S, IterKind.kIter_I, IterKind.kIter_J, IterKind.kIter_K  # noqa: E741


def tiles(block: Any, size: int) -> int:
    """How many tiles of `size` x `size` the product has; open dimensions count as 1. 0 for what is no product."""
    found: Any = detect_iter_traits(block)
    if found is None:
        return 0
    extents = {kind: [_fixed(trait) for trait in found[3] if trait.kind == kind] for kind in (S, I, J)}
    return math.prod(extents[S]) * math.prod(-(-math.prod(extents[kind]) // size) for kind in (I, J))


def has_open_size(block: Any) -> bool:
    """Whether an axis of the block has a size that is not known when compiling."""
    return any(not isinstance(axis.dom.extent, tirx.IntImm) for axis in block.iter_vars)


def _fixed(trait: Any) -> int:
    return int(trait.extent) if isinstance(trait.extent, tirx.IntImm) else 1


def index_maps(block: Any, tile: int, by_columns: bool) -> tuple[tirx.IndexMap, ...] | None:
    """Of the block, of A, B (as [s,j,k] if `by_columns`) and C; None for what is no such product.

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
    orders = ((whole, [S, I, J, K]), (a, [S, I, K]), (b, [S, J, K] if by_columns else [S, K, J]), (c, [S, I, J]))
    return tuple(make_iter_fusion_index_map(traits, order) for traits, order in orders)


@dataclasses.dataclass(frozen=True)
class Run:
    """Elements of an operand that lie in memory one after another: along which kind of axes, K, I or J.

    `width`: as many as every run starts at a multiple of, and has a multiple of; 1 where that is not known; 0 where
    runs of whole vectors start between them, as in a part of a longer row.
    """

    along: Any
    width: int


def runs(sch: Any, main: Any) -> tuple[Run, Run]:
    """Those of A and B, the operands of the block `main`, seen through what stands before it, as a transposition."""
    block = sch.get(main)
    found: Any = detect_iter_traits(block)
    if found is None:
        return Run(K, 1), Run(J, 1)
    offsets = [_offset(sch, main, read) for read in block.reads]
    axes = [(axis, trait.kind) for axis, trait in zip(block.iter_vars, found[3], strict=True)]
    return _run(offsets[0], axes, (K, I)), _run(offsets[1], axes, (J, K))


def _run(offset: Any, axes: list[tuple[Any, Any]], kinds: tuple[Any, Any]) -> Run:
    """Along the first of `kinds` of whose axes the last has unit steps; else along the first, of one element."""
    for kind in kinds:
        last = [axis for axis, its in axes if its == kind][-1]
        if _is_unit_step(offset, last.var):
            extent = _fixed_extent(last)
            width = math.gcd(_multiple_of(_replaced(offset, {last.var: 0 * last.var})), extent)
            return Run(kind, 0 if width < 4 and extent % 4 == 0 else width)
    return Run(kinds[0], 1)


def _multiple_of(expression: Any) -> int:
    """A number that `expression` is a multiple of, whatever its variables are; 0 is a multiple of all."""
    if isinstance(expression, int):
        return expression
    known: Any = Analyzer().modular_set(Analyzer().simplify(expression))
    return math.gcd(int(known.coeff), int(known.base))


def _fixed_extent(axis: Any) -> int:
    return int(axis.dom.extent) if isinstance(axis.dom.extent, tirx.IntImm) else 1


def _offset(sch: Any, reader: Any, region: Any) -> Any:
    """Where the element `region`, read in the block `reader`, comes from: its place in a parameter's buffer."""
    indices = [side.min for side in region.region]
    for producer in sch.get_producers(reader):
        made = sch.get(producer)
        if made.writes[0].source.same_as(region.source) and made.reads:
            axes = dict(zip([axis.var for axis in made.iter_vars], indices, strict=True))
            before = _offset(sch, producer, max(made.reads, key=lambda read: len(read.source.shape)))
            return _replaced(before, axes)
    offset: Any = 0
    for index, size in zip(indices, region.source.shape, strict=True):
        offset = offset * size + index
    return offset


def _is_unit_step(offset: Any, axis: Any) -> bool:
    """Whether `offset` grows by 1 with `axis`."""
    step: Any = Analyzer().simplify(_replaced(offset, {axis: axis + 1}) - offset)
    return isinstance(step, tirx.IntImm) and int(step) == 1


def _replaced(expression: Any, values: Mapping[Any, Any]) -> Any:
    if isinstance(expression, int):
        return expression

    def value(variable: tirx.Var) -> Any:
        return values.get(variable, variable)

    return tvm_ffi.structural_map(expression, (tirx.Var, value))
