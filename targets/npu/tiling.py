"""How a layer is cut into tiles that fit scratchpad and accumulators, chosen by an estimate of cycles."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from functools import lru_cache

from graphopt.targets.npu import cycles
from graphopt.targets.npu.isa import ACTIVATIONS, CONSTANTS, PARAMETER_BYTES, Exec, Load, Store
from graphopt.targets.npu.layer import Geometry
from graphopt.targets.npu.machine import Machine, Systolic

ALIGN = 16
PER_TILE = 16  # cycles; breaks ties in favour of fewer, larger tiles
SLOTS = 2  # every buffer exists twice: one is filled while the other is used


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Largest extent of a tile along each axis. `weights_outer`: weights stay while inputs pass, else vice versa.

    `held`: all weights of a group stay in the scratchpad. `cycles`: the estimate for the whole layer.
    """

    groups: int
    oc: int
    cin: int
    oh: int
    ow: int
    weights_outer: bool
    held: bool = False
    cycles: int = dataclasses.field(default=0, compare=False)


@dataclasses.dataclass(frozen=True)
class Near:
    """Where a layer's tensors lie: in the scratchpad as a whole (then it needs no buffers for them), or in DRAM."""

    input: bool = False
    output: bool = False


@dataclasses.dataclass(frozen=True)
class Buffers:
    """Bytes of one slot of each buffer, and how many there are of weights and parameters; `SLOTS` of each other."""

    input: int
    weights: int
    parameters: int
    output: int
    acc: int
    weight_slots: int = SLOTS
    parameter_slots: int = SLOTS

    @property
    def scratchpad(self) -> int:
        """Bytes of scratchpad that all slots take."""
        constants = self.weight_slots * self.weights + self.parameter_slots * self.parameters
        return SLOTS * (self.input + self.output) + constants


FAR = Near()


def buffers(geometry: Geometry, tiling: Tiling, near: Near = FAR) -> Buffers:
    """What a full tile needs."""
    g = geometry
    channels, positions = tiling.groups * tiling.oc, tiling.oh * tiling.ow
    window = window_extent(g, tiling.oh, tiling.ow)
    outer, inner = -(-g.oc // tiling.oc), -(-g.cin // tiling.cin)
    return Buffers(
        input=0 if near.input else align(tiling.groups * tiling.cin * window[0] * window[1]),
        weights=align(-(-channels * tiling.cin * g.kh * g.kw * g.weight_bits // 8)),
        parameters=align(channels * PARAMETER_BYTES),
        output=0 if near.output else align(channels * positions * g.output_size),
        acc=align(4 * channels * positions),
        weight_slots=max(outer * inner, SLOTS) if tiling.held else SLOTS,
        parameter_slots=SLOTS if tiling.weights_outer else max(outer, SLOTS),
    )


def window_extent(geometry: Geometry, oh: int, ow: int) -> tuple[int, int]:
    """Input rows and columns that `oh` x `ow` outputs span, padding included."""
    rows = (oh - 1) * geometry.stride[0] + (geometry.kh - 1) * geometry.dilation[0] + 1
    columns = (ow - 1) * geometry.stride[1] + (geometry.kw - 1) * geometry.dilation[1] + 1
    return rows, columns


@lru_cache(maxsize=1 << 14)
def choose(geometry: Geometry, machine: Machine, budget: int = 0, near: Near = FAR) -> Tiling:
    """The tiling with the fewest estimated cycles. `budget`: bytes of scratchpad to use, 0 for all there are.

    Raises:
        ValueError: not even the smallest tile fits.
    """
    array, budget = machine.array, budget or machine.scratchpad_bytes
    steps = (array.columns, array.rows, 1) if isinstance(array, Systolic) else (array.channels, array.depth, 2)
    fitting: list[Tiling] = []
    for whole_sums in (True, False):  # sums in parts only where they must be
        for oc_step, cin_step, row_step in (steps, (1, 1, 1)):  # tiles that leave the array idle only where none fits
            candidates = _candidates(geometry, oc_step, cin_step, row_step, machine.accumulator_bytes, whole_sums)
            fitting = fitting or [t for t in candidates if buffers(geometry, t, near).scratchpad <= budget]
    if not fitting:
        raise ValueError(f"no tile of it fits the scratchpad or the accumulators of {machine.name!r}")
    most = 4 * min(_tiles(geometry, t) for t in fitting)
    near_most = [t for t in fitting if _tiles(geometry, t) <= most]
    estimates = [(_estimate(geometry, t, machine, near), n) for n, t in enumerate(near_most)]
    least, best = min(estimates)
    return dataclasses.replace(near_most[best], cycles=int(least))


def _tiles(g: Geometry, t: Tiling) -> int:
    return -(-g.groups // t.groups) * -(-g.oc // t.oc) * -(-g.cin // t.cin) * -(-g.oh // t.oh) * -(-g.ow // t.ow)


def _candidates(
    geometry: Geometry, oc_step: int, cin_step: int, row_step: int, acc_bytes: int, whole_sums: bool
) -> Iterable[Tiling]:
    """Tiles whose two slots of accumulators fit."""
    most = acc_bytes // SLOTS // 4
    heights = _sizes(geometry.oh, row_step)
    widths = _sizes(geometry.ow, row_step)
    sums = [geometry.cin] if whole_sums else [c for c in _sizes(geometry.cin, cin_step) if c < geometry.cin]
    blocks = [
        (groups, geometry.oc, cin)
        for groups in sorted({*_sizes(geometry.groups, 1), *_sizes(geometry.groups, oc_step)}, reverse=True)
        if groups > 1
        for cin in sums
        if cin == geometry.cin
    ]
    blocks += [(1, oc, cin) for oc in _sizes(geometry.oc, oc_step) for cin in sums]
    for (groups, oc, cin), oh in itertools.product(blocks, heights):
        if groups * oc * oh * min(row_step, geometry.ow) > most:
            continue
        for ow in widths:
            if (ow < geometry.ow and oh > row_step) or align(4 * groups * oc * oh * ow) > most * 4:
                continue  # rows are cut only when a single one is too long
            yield Tiling(groups, oc, cin, oh, ow, weights_outer=True)
            if geometry.oh > oh or geometry.ow > ow or geometry.batch > 1:
                yield Tiling(groups, oc, cin, oh, ow, weights_outer=False)
                if groups == 1:
                    yield Tiling(groups, oc, cin, oh, ow, weights_outer=False, held=True)


@lru_cache(maxsize=4096)
def _sizes(whole: int, step: int) -> list[int]:
    """The whole, and about its half, third, quarter, sixth... rounded up to `step`."""
    parts = (-(-whole // n) for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024, 4096, whole))
    return sorted({min(whole, -(-part // step) * step) for part in parts}, reverse=True)


def _estimate(geometry: Geometry, tiling: Tiling, machine: Machine, near: Near) -> float:
    """Cycles of the busiest unit, plus filling and draining the pipeline once, plus a little per tile."""
    g = geometry
    spatial = g.batch * -(-g.oh // tiling.oh) * -(-g.ow // tiling.ow)
    outer, inner = -(-g.oc // tiling.oc), -(-g.cin // tiling.cin)
    blocks = -(-g.groups // tiling.groups)
    # How often the same tile is loaded anew: not at all where all that come between fit its slots.
    once = tiling.held or (tiling.weights_outer and inner <= SLOTS) or outer * inner <= SLOTS
    weights_again = 1 if once else spatial
    inputs_again = 1 if (not tiling.weights_outer and inner <= SLOTS) or spatial * inner <= SLOTS else outer
    weights, source, result = _transfers(g, tiling)
    constants, activations = machine.memory("constants"), machine.memory("activations")
    load_weights = cycles.transfer_cycles(constants, weights)
    load_input = 0 if near.input else cycles.transfer_cycles(activations, source)
    store = 0 if near.output else cycles.transfer_cycles(activations, result)
    size = tiling.groups * PARAMETER_BYTES if tiling.groups > 1 else 0  # else they are few beside the weights
    load_parameters = cycles.transfer_cycles(constants, Load(CONSTANTS, 0, 0, 1, 1, size, size, size, 0, 0))
    tiles = blocks * spatial * outer
    ports: dict[str, int] = {}
    for memory, busy in (
        (constants, blocks * outer * (inner * weights_again * load_weights + load_parameters)),
        (activations, blocks * spatial * inner * inputs_again * load_input + tiles * store),
    ):
        ports[memory.name] = ports.get(memory.name, 0) + busy
    array = cycles.exec_cycles(machine, full_window(g, tiling))
    vector = cycles.vector_cycles(machine, tiling.groups * tiling.oc, tiling.oh * tiling.ow)
    start = max(load_weights, load_input) + array + vector + store
    return max(tiles * inner * array, tiles * vector, *ports.values()) + start + PER_TILE * tiles * inner


def _transfers(g: Geometry, tiling: Tiling) -> tuple[Load, Load, Store]:
    """The transfers of a full tile, addresses left out: weights, input, output."""
    channels, size = tiling.groups * tiling.oc, g.output_size
    bits = channels * tiling.cin * g.kh * g.kw * g.weight_bits
    weights = Load(CONSTANTS, 0, 0, 1, 1, -(-bits // 8), 0, 0, 0, 0)
    if g.channels_last:
        source = Load(ACTIVATIONS, 0, 0, 1, tiling.ow, tiling.cin, 0, g.cin, 0, 0)
        return weights, source, Store(ACTIVATIONS, 0, 0, 1, tiling.ow, channels * size, 0, g.oc * size, 0, 0)
    rows, columns = window_extent(g, tiling.oh, tiling.ow)
    rows, columns = min(rows, g.ih), min(columns, g.iw)
    source = Load(ACTIVATIONS, 0, 0, tiling.groups * tiling.cin, rows, columns, g.ih * g.iw, g.iw, 0, 0)
    plane = g.oh * g.ow * size
    result = Store(ACTIVATIONS, 0, 0, channels, tiling.oh, tiling.ow * size, plane, g.ow * size, 0, 0)
    return weights, source, result


def full_window(geometry: Geometry, tiling: Tiling) -> Exec:
    """The `exec` of a full tile, addresses left out."""
    return Exec(
        input_zero=0, weight_zero=0, input=0, weights=0, acc=0,
        groups=tiling.groups, cin=tiling.cin, oc=tiling.oc, oh=tiling.oh, ow=tiling.ow,
        kh=geometry.kh, kw=geometry.kw,
        channel_stride=0, row_stride=0, column_stride=0, kernel_row_stride=0, kernel_column_stride=0,
    )  # fmt: skip


def align(size: int) -> int:
    """`size` rounded up to `ALIGN`."""
    return -(-size // ALIGN) * ALIGN
