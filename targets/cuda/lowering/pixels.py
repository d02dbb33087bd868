"""Pictures whose pixels tensor cores get by whole copies: 3 channels become 4.

The last one is zeros, as in the weights, which are so once, when compiling: a pixel is then one copy of 8 bytes
(float16) or 4 (int8).
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, tirx

CONVOLUTION = "relax.nn.conv2d"
_CHANNELS = 4
_FEW = range(2, 8)
"""Channels that are worth a picture's copy; of 1 the copy would be four times the picture."""


def whole_pixels(module: tvm.IRModule) -> tvm.IRModule:
    """`module` with convolutions of few channels, channels last already, of a multiple of 4."""
    mutator: Any = _Pixels(module)
    mutator.builder_.update_func(module.get_global_var("main"), mutator.visit_expr(module["main"]))
    return mutator.builder_.get()


@relax.expr_functor.mutator
class _Pixels(relax.PyExprMutator):
    def visit_call_(self, op: Any) -> Any:
        call: Any = self.visit_expr_post_order(op)
        return self._convolution(call) if getattr(call.op, "name", "") == CONVOLUTION else call

    def _convolution(self, call: Any) -> Any:
        said, (x, w) = call.attrs, call.args
        layouts = (str(said.data_layout), str(said.kernel_layout))
        missing = _missing(x, w, int(said.groups)) if layouts[0] == "NHWC" else 0
        if not missing:
            return call
        padded = [self._padded(x, layouts[0].index("C"), missing), self._padded(w, layouts[1].index("I"), missing)]
        strides, padding, dilation = (tuple(map(int, sizes)) for sizes in (said.strides, said.padding, said.dilation))
        convolution: Any = relax.op.nn.conv2d
        return convolution(
            *padded,
            strides=strides,
            padding=padding,
            dilation=dilation,
            data_layout=layouts[0],
            kernel_layout=layouts[1],
            out_layout=str(said.out_layout),
            out_dtype=str(call.ty.dtype),
        )

    def _padded(self, value: Any, axis: int, missing: int) -> Any:
        width = [0] * (2 * len(value.ty.shape))
        width[2 * axis + 1] = missing
        return self.builder_.emit(relax.op.nn.pad(value, width), name_hint="padded")


def _missing(x: Any, w: Any, groups: int) -> int:
    channels = x.ty.shape[-1]
    narrow = str(x.ty.dtype) == str(w.ty.dtype) in ("float16", "bfloat16", "int8", "uint8")
    few = isinstance(channels, tirx.IntImm) and int(channels) in _FEW
    return -int(channels) % _CHANNELS if narrow and few and groups == 1 else 0
