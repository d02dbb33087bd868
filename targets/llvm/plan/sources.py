"""Concatenations and slices of channels that a kernel reads where they lie."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.targets.llvm.kernels.gemm import Source
from graphopt.targets.llvm.plan.layout import Part, Twins, image

MOST = 8
"""Inputs that a kernel reads from; of more (dense blocks), one copy of all of them is made for all their readers."""


def sources(value: ir.Value, twins: Twins) -> tuple[tuple[Source, ...], list[ir.Value]]:
    """The twins that `value` consists of, and which channels of each; no sources where it is a twin in one piece."""
    parts = twins.parts(value)
    if len(parts) <= MOST and all(_plain(part, value) for part in parts):
        found = [Source(_channels(part), part.start, part.count) for part in parts]
        if len(found) > 1 or any(source.count < source.channels for source in found):
            return tuple(found), [part.twin for part in parts]
    return (), [twins.last(value)]


def _plain(part: Part, value: ir.Value) -> bool:
    """Whether each position of `value` is that of the part's twin, which has its values and not bytes of them."""
    shape = image(value)
    assert shape is not None
    same = part.twin.shape is not None and list(part.twin.shape)[1:3] == [shape.h, shape.w]
    return same and part.grid is None and part.scale == part.step == (1, 1) and part.offset == (0, 0)


def _channels(part: Part) -> int:
    assert part.twin.shape is not None
    channels = part.twin.shape[-1]
    assert isinstance(channels, int)
    return channels
