"""What a convolution is."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution: input [N, H, W, CI], output [N, OH, OW, CO]; `n` a number or the name of a symbolic dimension.

    `pads`: top, left, bottom, right. With groups, `ci` and `co` count all channels; group = channels is `depthwise`.
    """

    n: int | str
    h: int
    w: int
    ci: int
    co: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    group: int = 1

    @property
    def oh(self) -> int:
        """Output rows."""
        return _out(self.h, self.kernel[0], self.strides[0], self.dilations[0], self.pads[0] + self.pads[2])

    @property
    def ow(self) -> int:
        """Output columns."""
        return _out(self.w, self.kernel[1], self.strides[1], self.dilations[1], self.pads[1] + self.pads[3])


def _out(size: int, kernel: int, stride: int, dilation: int, pad: int) -> int:
    return (size + pad - dilation * (kernel - 1) - 1) // stride + 1
