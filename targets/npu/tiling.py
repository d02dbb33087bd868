"""How a layer is cut into tiles that fit scratchpad and accumulators, chosen by an estimate of cycles."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from functools import lru_cache

from graphopt.targets.npu import cycles
from graphopt.targets.npu.isa import CONSTANTS, INPUT, OUTPUT, PARAMETER_BYTES, Exec, Load, Store
from graphopt.targets.npu.layer import Geometry
from graphopt.targets.npu.machine import Machine, Systolic

ALIGN = 16
PER_TILE = 16  # cycles; breaks ties in favour of fewer, larger tiles
SLOTS = 2  # every buffer exists twice: one is filled while the other is used


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Largest extent of a tile along each axis. `weights_outer`: weights stay while inputs pass, else vice versa."""

    groups: int
    oc: int
    cin: int
    oh: int
    ow: int
    weights_outer: bool


@dataclasses.dataclass(frozen=True)
class Buffers:
    """Bytes of one slot of each buffer."""

    input: int
    weights: int
    parameters: int
    output: int
    acc: int

    @property
    def scratchpad(self) -> int:
        """Bytes of scratchpad that all slots take."""
        return SLOTS * (self.input + self.weights + self.parameters + self.output)


def buffers(geometry: Geometry, tiling: Tiling) -> Buffers:
    """What a full tile needs."""
    channels, positions = tiling.groups * tiling.oc, tiling.oh * tiling.ow
    window = window_extent(geometry, tiling.oh, tiling.ow)
    return Buffers(
        input=_align(tiling.groups * tiling.cin * window[0] * window[1]),
        weights=_align(channels * tiling.cin * geometry.kh * geometry.kw),
        parameters=_align(channels * PARAMETER_BYTES),
        output=_align(channels * positions * geometry.output_size),
        acc=_align(4 * channels * positions),
    )


def window_extent(geometry: Geometry, oh: int, ow: int) -> tuple[int, int]:
    """Input rows and columns that `oh` x `ow` outputs span, padding included."""
    rows = (oh - 1) * geometry.stride[0] + (geometry.kh - 1) * geometry.dilation[0] + 1
    columns = (ow - 1) * geometry.stride[1] + (geometry.kw - 1) * geometry.dilation[1] + 1
    return rows, columns


@lru_cache(maxsize=4096)
def choose(geometry: Geometry, machine: Machine) -> Tiling:
    """The tiling with the fewest estimated cycles.

    Raises:
        ValueError: not even the smallest tile fits the machine.
    """
    array = machine.array
    steps = (array.columns, array.rows, 1) if isinstance(array, Systolic) else (array.channels, array.depth, 2)
    fitting: list[Tiling] = []
    for oc_step, cin_step, row_step in (steps, (1, 1, 1)):  # tiles that leave the array idle only where none else fits
        candidates = _candidates(geometry, oc_step, cin_step, row_step)
        fitting = fitting or [tiling for tiling in candidates if _fits(geometry, tiling, machine)]
    whole = [tiling for tiling in fitting if tiling.cin == geometry.cin]  # sums in parts only where they must be
    best = min(whole or fitting, key=lambda tiling: _estimate(geometry, tiling, machine), default=None)
    if best is None:
        raise ValueError(f"no tile of it fits the scratchpad or the accumulators of {machine.name!r}")
    return best


def _fits(geometry: Geometry, tiling: Tiling, machine: Machine) -> bool:
    need = buffers(geometry, tiling)
    return need.scratchpad <= machine.scratchpad_bytes and SLOTS * need.acc <= machine.accumulator_bytes


def _candidates(geometry: Geometry, oc_step: int, cin_step: int, row_step: int) -> Iterable[Tiling]:
    heights = _sizes(geometry.oh, row_step)
    widths = _sizes(geometry.ow, row_step)
    blocks = [(groups, geometry.oc, geometry.cin) for groups in _sizes(geometry.groups, 1) if groups > 1]
    blocks += [(1, oc, cin) for oc in _sizes(geometry.oc, oc_step) for cin in _sizes(geometry.cin, cin_step)]
    for (groups, oc, cin), oh, ow in itertools.product(blocks, heights, widths):
        if ow < geometry.ow and oh > row_step:
            continue  # rows are cut only when a single one is too long
        yield Tiling(groups, oc, cin, oh, ow, weights_outer=True)
        yield Tiling(groups, oc, cin, oh, ow, weights_outer=False)


def _sizes(whole: int, step: int) -> list[int]:
    """The whole, and about its half, third, quarter, sixth... rounded up to `step`."""
    parts = (
        -(-whole // n)
        for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 4096, 1 << 14, whole)
    )
    return sorted({min(whole, -(-part // step) * step) for part in parts}, reverse=True)


def _estimate(geometry: Geometry, tiling: Tiling, machine: Machine) -> float:
    """Cycles of the busiest unit, plus filling and draining the pipeline once, plus a little per tile."""
    g = geometry
    spatial = g.batch * -(-g.oh // tiling.oh) * -(-g.ow // tiling.ow)
    outer, inner = -(-g.oc // tiling.oc), -(-g.cin // tiling.cin)
    blocks = -(-g.groups // tiling.groups)
    # How often the same tile is loaded anew: not at all where all that come between fit its two slots.
    weights_again = 1 if (tiling.weights_outer and inner <= SLOTS) or outer * inner <= SLOTS else spatial
    inputs_again = 1 if (not tiling.weights_outer and inner <= SLOTS) or spatial * inner <= SLOTS else outer
    weights, source, result = _transfers(g, tiling)
    constants, activations = machine.memory("constants"), machine.memory("activations")
    load_weights = cycles.transfer_cycles(constants, weights)
    load_input = cycles.transfer_cycles(activations, source)
    store = cycles.transfer_cycles(activations, result)
    tiles = blocks * spatial * outer
    ports: dict[str, int] = {}
    for memory, busy in (
        (constants, blocks * outer * inner * weights_again * load_weights),
        (activations, blocks * spatial * inner * inputs_again * load_input + tiles * store),
    ):
        ports[memory.name] = ports.get(memory.name, 0) + busy
    array = cycles.exec_cycles(machine, full_window(g, tiling))
    vector = cycles.vector_cycles(machine, tiling.groups * tiling.oc, tiling.oh * tiling.ow)
    once = max(load_weights, load_input) + array + vector + store
    return max(tiles * inner * array, tiles * vector, *ports.values()) + once + PER_TILE * tiles * inner


def _transfers(g: Geometry, tiling: Tiling) -> tuple[Load, Load, Store]:
    """The transfers of a full tile, addresses left out: weights, input, output."""
    taps, channels, size = g.kh * g.kw, tiling.groups * tiling.oc, g.output_size
    weights = Load(CONSTANTS, 0, 0, 1, channels, tiling.cin * taps, 0, g.cin * taps, 0, 0)
    if g.channels_last:
        source = Load(INPUT, 0, 0, 1, tiling.ow, tiling.cin, 0, g.cin, 0, 0)
        return weights, source, Store(OUTPUT, 0, 0, 1, tiling.ow, channels * size, 0, g.oc * size, 0, 0)
    rows, columns = window_extent(g, tiling.oh, tiling.ow)
    rows, columns = min(rows, g.ih), min(columns, g.iw)
    source = Load(INPUT, 0, 0, tiling.groups * tiling.cin, rows, columns, g.ih * g.iw, g.iw, 0, 0)
    return (
        weights,
        source,
        Store(OUTPUT, 0, 0, channels, tiling.oh, tiling.ow * size, g.oh * g.ow * size, g.ow * size, 0, 0),
    )


def full_window(geometry: Geometry, tiling: Tiling) -> Exec:
    """The `exec` of a full tile, addresses left out."""
    return Exec(
        flags=0, input_zero=0, weight_zero=0, input=0, weights=0, acc=0,
        groups=tiling.groups, cin=tiling.cin, oc=tiling.oc, oh=tiling.oh, ow=tiling.ow,
        kh=geometry.kh, kw=geometry.kw,
        channel_stride=0, row_stride=0, column_stride=0, kernel_row_stride=0, kernel_column_stride=0,
    )  # fmt: skip


def _align(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
