"""Products on tensor cores: a schedule for ``C[s,i,j] += A[s,i,k] * B[s,k,j]``.

Of float16 or bfloat16 summed in float32, of int8 or uint8 in int32 (`wmma.SUMS`). Matrix products and convolutions
alike; of the latter A is read in place, as the implicit product over taps and channels (Chetlur et al. 2014, cuDNN). A
block of 4 warps computes a tile of 64 x 64, or of 32 x 32 where there would be too few to occupy a GPU, in steps of 64
bytes along k: the tiles of A and B go into shared memory, each warp multiplies its quarter by 16 x 16 x 16 fragments
(NVIDIA, "CUDA C++ Programming Guide", wmma). B lies there as it does in memory, by rows or columns. Sizes that are no
multiples of the tile, and a convolution's border, are zeros as they are loaded. Where the GPU copies asynchronously,
three steps or more are in shared memory: the copies of the next run while one is multiplied. What follows the product
element by element is computed as the result leaves shared memory.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.dlight.analysis import get_root_block
from tvm.s_tir.dlight.gpu.matmul import get_reduction_blocks

from graphopt.targets.cuda.schedules.index_maps import K, has_open_size, index_maps, runs, tiles
from graphopt.targets.cuda.schedules.wmma import COLUMNS, ROWS, SUMS, intrinsics

FRAGMENT, WARP = 16, 32
STAGES, MORE_STAGES = 3, 6
"""Steps along k that are in shared memory at once: with the results at most 47 KiB of 48. More of them where there are
too few tiles to occupy a GPU: what is under way has to fill the memory's latency (Little's law)."""
WARPS_I, WARPS_J = 2, 2
TILES = (64, 32)
STEP_BYTES, COPIES = 64, (16, 8, 4)
"""Bytes of a row of A in one step along k; of a copy, those that a GPU does asynchronously."""
ENOUGH = 108
"""Tiles: an A100 has as many multiprocessors."""


class TensorCores:
    """A rule in the manner of dlight's."""

    def apply(self, function: tirx.PrimFunc, target: Any, _: bool) -> s_tir.Schedule | None:
        """The schedule, or None for a function that is no product of types that tensor cores take."""
        schedule = s_tir.Schedule(function, error_render_level="none")
        blocks: Any = get_reduction_blocks(schedule, schedule.get_child_blocks(get_root_block(schedule)))
        operand = _operand(schedule.get(blocks[0])) if blocks else None
        if operand is None or (operand == "bfloat16" and not is_ampere(target)):
            return None
        return _schedule(schedule, blocks[0], operand, is_ampere(target))


def is_ampere(target: Any) -> bool:
    """sm_80 and newer: they copy from global to shared memory without a register or a wait, and have bfloat16."""
    return int(str(target.attrs["arch"]).removeprefix("sm_")) >= 80


def _operand(block: Any) -> str | None:
    """The type of both operands of the product `block`, if tensor cores have such products with its type of sums."""
    read, written = {str(r.source.dtype) for r in block.reads}, {str(w.source.dtype) for w in block.writes}
    operand = next(iter(read)) if len(read) == 1 else ""
    return operand if written == {SUMS.get(operand)} else None


def _schedule(sch: Any, main: Any, operand: str, asynchronous: bool) -> Any:
    bytes_each = tvm.DataType(operand).itemsize
    fragments_k = STEP_BYTES // bytes_each // FRAGMENT
    of_operands = runs(sch, main)
    if not all(run.width for run in of_operands):
        return None
    by_columns = of_operands[1].along == K
    uses = intrinsics(operand, COLUMNS if by_columns else ROWS)
    reads = [sch.reindex(main, ("read", index)) for index in (0, 1)]
    written = sch.reindex(main, ("write", 0))
    tile = next((size for size in TILES if tiles(sch.get(main), size) >= ENOUGH), TILES[-1])
    is_small = not has_open_size(sch.get(main)) and tiles(sch.get(main), tile) < ENOUGH
    stages = MORE_STAGES if is_small else STAGES
    fragments_i, fragments_j = tile // WARPS_I // FRAGMENT, tile // WARPS_J // FRAGMENT
    maps = index_maps(sch.get(main), tile, by_columns)
    if maps is None:
        return None
    of_product, of_a, of_b, of_c = maps
    sch.transform_layout(reads[0], ("write", 0), of_a)
    sch.transform_layout(reads[1], ("write", 0), of_b)
    sch.transform_layout(written, ("read", 0), of_c)
    sch.transform_block_layout(main, of_product)
    sch.pad_einsum(main, [1, tile, tile, fragments_k * FRAGMENT])

    batch, i, j, k = sch.get_loops(main)
    i, i_in = sch.split(i, [None, FRAGMENT])
    j, j_in = sch.split(j, [None, FRAGMENT])
    k, k_in = sch.split(k, [None, FRAGMENT])
    sch.reorder(i, j, k, i_in, j_in, k_in)
    inner, outer = main, sch.blockize(i_in)
    i0, i1, i2 = sch.split(i, [None, WARPS_I, fragments_i])
    j0, j1, j2 = sch.split(j, [None, WARPS_J, fragments_j])
    k0, k1 = sch.split(k, [None, fragments_k])
    sch.reorder(i0, j0, i1, j1, k0, k1, i2, j2)
    warp = sch.fuse(i1, j1)
    for loop, tag in ((batch, "blockIdx.z"), (i0, "blockIdx.x"), (j0, "blockIdx.y"), (warp, "threadIdx.y")):
        sch.bind(loop, tag)

    shared = [_to_shared(sch, outer, index, k0, bytes_each, run.width) for index, run in enumerate(of_operands)]
    for block in shared:
        _inline_producers(sch, block)
    fragments = [sch.cache_read(outer, index, f"wmma.matrix_{'ab'[index]}") for index in (0, 1)]
    for block in fragments:
        sch.compute_at(block, k1)
    staged = sch.cache_write(outer, 0, "shared")
    sch.storage_align(staged, 0, -2, 16, 4)
    store = sch.cache_write(outer, 0, "wmma.accumulator")
    sch.reverse_compute_at(store, warp)
    sch.reverse_compute_at(staged, warp)
    start = sch.decompose_reduction(outer, k0)
    if asynchronous:
        sch.annotate(k0, "software_pipeline_stage", [0, 0, stages - 1])
        sch.annotate(k0, "software_pipeline_order", [0, 1, 2])
        sch.annotate(k0, "software_pipeline_async_stages", [0])

    for block, name in zip(fragments, (uses.load_a, uses.load_b), strict=True):
        sch.tensorize(_by_fragments(sch, block), name)
    sch.tensorize(_by_fragments(sch, store), uses.store)
    sch.tensorize(sch.get_loops(sch.get_child_blocks(start)[0])[-2], uses.init)
    sch.tensorize(sch.get_loops(inner)[-3], uses.compute)

    _inline_consumers(sch, staged)
    fused = sch.fuse(*sch.get_loops(staged)[-2:])
    _, lane, vector = sch.split(fused, [None, WARP, 4])
    sch.bind(lane, "threadIdx.x")
    sch.vectorize(vector)
    return sch


def _to_shared(sch: Any, outer: Any, index: int, at: Any, bytes_each: int, width: int) -> Any:
    """The tile of operand `index` loaded by all threads together; rows 16 bytes longer, against bank conflicts.

    Runs of `width` elements in memory are copied by 16, 8 or 4 bytes at once.
    """
    widest = COPIES[0] // bytes_each
    lanes = next((size // bytes_each for size in COPIES if width % (size // bytes_each) == 0), widest)
    block = sch.cache_read(outer, index, "shared")
    sch.compute_at(block, at)
    fused = sch.fuse(*sch.get_loops(block)[-2:])
    _, warp, lane, vector = sch.split(fused, [None, WARPS_I * WARPS_J, WARP, lanes])
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    sch.vectorize(vector)
    sch.storage_align(block, 0, axis=-2, factor=2 * widest, offset=widest)
    return block


def _by_fragments(sch: Any, block: Any) -> Any:
    """The last two loops of `block` cut into fragments; the loop over one."""
    i, j = sch.get_loops(block)[-2:]
    i0, i1 = sch.split(i, [None, FRAGMENT])
    j0, j1 = sch.split(j, [None, FRAGMENT])
    sch.reorder(i0, j0, i1, j1)
    sch.unroll(i0)
    sch.unroll(j0)
    return i1


def _inline_producers(sch: Any, block: Any) -> None:
    while producers := sch.get_producers(block):
        for producer in producers:
            sch.compute_inline(producer)


def _inline_consumers(sch: Any, block: Any) -> None:
    """Each step after the product into the copy out of shared memory; what such a step reads besides, into the step."""
    while consumers := sch.get_consumers(block):
        consumer = consumers[0]
        for producer in sch.get_producers(consumer):
            if sch.get(producer) != sch.get(block):
                sch.compute_inline(producer)
        if len(consumers) == 1 and not sch.get_consumers(consumer):
            sch.reverse_compute_inline(consumer)
        else:
            sch.compute_inline(consumer)
