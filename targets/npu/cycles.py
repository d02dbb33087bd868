"""How many cycles each unit needs for one instruction: formulas only, with their source."""

from __future__ import annotations

from math import ceil

from graphopt.targets.npu.isa import Exec, Load, Store
from graphopt.targets.npu.machine import Dataflow, DotProduct, Machine, Memory, Systolic


def systolic_cycles(array: Systolic, m: int, n: int, k: int) -> int:
    """Cycles of an (m x k) by (k x n) product: SCALE-Sim's compute cycles, exactly.

    With R rows and C columns, as the pipeline fills and drains anew for every fold::

        output-stationary  ceil(m/R) * ceil(n/C) * (k + R + C - 2)
        weight-stationary  ceil(k/R) * ceil(n/C) * (m + 2R + C - 2)
        input-stationary   ceil(k/R) * ceil(m/C) * (n + 2R + C - 2)
    """
    return min(systolic_ways(array, m, n, k).values())


def systolic_ways(array: Systolic, m: int, n: int, k: int) -> dict[Dataflow, int]:
    """The cycles of `systolic_cycles` for each dataflow the array has."""
    rows, columns = array.rows, array.columns
    ways: dict[Dataflow, int] = {
        "output-stationary": _up(m, rows) * _up(n, columns) * (k + rows + columns - 2),
        "weight-stationary": _up(k, rows) * _up(n, columns) * (m + 2 * rows + columns - 2),
        "input-stationary": _up(k, rows) * _up(m, columns) * (n + 2 * rows + columns - 2),
    }
    return {dataflow: ways[dataflow] for dataflow in array.dataflows}


def dot_product_cycles(array: DotProduct, window: Exec) -> int:
    """Cycles of a window on an array of dot products: the block formula of Arm's Vela (`_estimate_conv_cycles`).

    Outputs are made in blocks of height x width x channels. A step takes `depth` / `lanes` cycles per block, but no
    fewer than the weights of one step take to arrive. It covers either `depth` channels of one kernel element, or
    the `part_kernel` split, whichever needs fewer steps; a depthwise step covers `part_kernel[0]` elements of one
    channel.
    """
    blocks = min(
        _up(window.oh, height) * _up(window.ow, width)
        for height, width in array.ublocks
        if height > 1 or window.oh == 1 or len(array.ublocks) == 1
    )
    elements, channels = array.part_kernel
    taps = window.kh * window.kw
    step = max(blocks * array.depth // array.lanes, array.depth * array.channels // array.weights_per_cycle)
    if window.cin == 1 and window.oc == 1:
        return _up(window.groups, array.channels) * _up(taps, elements) * step
    steps = min(taps * _up(window.cin, array.depth), _up(taps, elements) * _up(window.cin, channels))
    return window.groups * _up(window.oc, array.channels) * steps * step


def exec_cycles(machine: Machine, window: Exec) -> int:
    """Cycles the array is busy with `window`; on a systolic array every group is a product of its own."""
    if isinstance(machine.array, DotProduct):
        return dot_product_cycles(machine.array, window)
    m, n, k = window.oh * window.ow, window.oc, window.cin * window.kh * window.kw
    return window.groups * systolic_cycles(machine.array, m, n, k)


def macs(window: Exec) -> int:
    """Multiply-accumulates of `window`, padding included."""
    return window.groups * window.oc * window.oh * window.ow * window.cin * window.kh * window.kw


def vector_cycles(machine: Machine, channels: int, positions: int) -> int:
    """Cycles to requantise channels x positions accumulators."""
    return _up(channels * positions, machine.vector.elements_per_cycle)


def fill_cycles(machine: Machine, size: int) -> int:
    """Cycles to write `size` bytes of padding."""
    return _up(size, machine.dma.fill_bytes_per_cycle)


def transfer_cycles(memory: Memory, block: Load | Store) -> int:
    """Cycles the port of `memory` is busy with `block`: whole bursts for each contiguous run of bytes."""
    runs, run = block.planes * block.rows, block.size
    if block.dram_row_stride == block.size:
        runs, run = block.planes, block.rows * block.size
        if block.dram_plane_stride == run:
            runs, run = 1, block.planes * run
    return ceil(runs * _up(run, memory.burst_bytes) * memory.burst_bytes / memory.bytes_per_cycle)


def unpack_cycles(machine: Machine, packed: int, size: int) -> int:
    """Cycles the port of the constants is busy with `size` weights in `packed` bytes: it waits for the decoder."""
    memory = machine.memory("constants")
    transfer = ceil(_up(packed, memory.burst_bytes) * memory.burst_bytes / memory.bytes_per_cycle)
    return max(transfer, _up(size, machine.decoder.weights_per_cycle) if machine.decoder else 0)


def _up(a: int, b: int) -> int:
    return -(-a // b)
