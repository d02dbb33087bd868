"""What the array can do, in one form: a quantized convolution window over an input in DRAM.

A matrix product of M rows by K columns is the layer with one row of M positions, `cin` = K and `channels_last`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Shapes only: what tiling depends on. `cin`, `oc` are per group; the input is (batch, groups*cin, ih, iw).

    `channels_last`: in DRAM the channels of one position are contiguous (a matrix's rows), else a channel's plane is.
    """

    batch: int
    groups: int
    cin: int
    oc: int
    ih: int
    iw: int
    oh: int
    ow: int
    kh: int = 1
    kw: int = 1
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)  # top, left
    channels_last: bool = False
    output_size: int = 1  # bytes of an output element: 1, or 4 for int32
    weight_bits: int = 8  # 8, or 4: two in a byte

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padding included."""
        return self.batch * self.groups * self.oc * self.oh * self.ow * self.cin * self.kh * self.kw

    @property
    def input_bytes(self) -> int:
        """Size of the input tensor."""
        return self.batch * self.groups * self.cin * self.ih * self.iw

    @property
    def output_bytes(self) -> int:
        """Size of the output tensor."""
        return self.batch * self.groups * self.oc * self.oh * self.ow * self.output_size

    @property
    def weight_bytes(self) -> int:
        """Size of the weights."""
        return -(-self.groups * self.oc * self.cin * self.kh * self.kw * self.weight_bits // 8)

    @property
    def touched_bytes(self) -> int:
        """Input bytes that at least one output depends on: what any schedule must read."""
        rows = _touched(self.oh, self.kh, self.stride[0], self.dilation[0], self.pad[0], self.ih)
        columns = _touched(self.ow, self.kw, self.stride[1], self.dilation[1], self.pad[1], self.iw)
        return self.batch * self.groups * self.cin * rows * columns


def _touched(outputs: int, kernel: int, stride: int, dilation: int, pad: int, size: int) -> int:
    places = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - pad
    return len(np.unique(places[(places >= 0) & (places < size)]))


@dataclasses.dataclass(frozen=True, eq=False)
class Requantise:
    """How accumulators become outputs. multiplier: float32, one per channel; the rest as in `numerics`.

    `low`, `high` hold the activation (Relu, Clip) as well as the range of the type. With `raw` the outputs are the
    int32 accumulators with the bias added, and `multiplier` is what one of their units is worth.
    """

    multiplier: Array
    signed: bool
    zero: int
    low: int
    high: int
    raw: bool = False

    @classmethod
    def none(cls, unit: Array) -> Requantise:
        """Leave the accumulators as they are; one is worth `unit`."""
        return cls(unit, True, 0, 0, 0, raw=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One quantized layer. weights: (groups*oc, cin*kh*kw) int8 or uint8; bias: int32 (groups*oc,)."""

    name: str
    op: str
    geometry: Geometry
    weights: Array
    bias: Array
    input_signed: bool
    input_zero: int
    weight_zero: int
    requantise: Requantise
