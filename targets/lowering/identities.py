"""The largest of nothing is -inf: TVM starts a maximum from the lowest finite number, so that of all -inf is wrong."""

from __future__ import annotations

import math

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock

_LOWEST = {f"float{bits}": float(np.finfo(f"float{bits}").min) for bits in (16, 32, 64)}


def exact_identities(module: tvm.IRModule) -> tvm.IRModule:
    """Start float maxima and minima of every TIR function in `module` from -inf and inf."""
    functions = {
        name: tvm_ffi.structural_map(function, (SBlock, _exact)) if isinstance(function, tirx.PrimFunc) else function
        for name, function in module.functions_items()
    }
    return tvm.IRModule(functions, attrs=module.attrs)  # pyright: ignore[reportAttributeAccessIssue]


def _exact(block: SBlock) -> SBlock:
    if block.init is None:
        return block
    return SBlock(
        block.iter_vars,
        block.reads,
        block.writes,
        block.name_hint,
        block.body,
        tvm_ffi.structural_map(block.init, (tirx.FloatImm, _widen)),
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )


def _widen(constant: tirx.FloatImm) -> tirx.FloatImm:
    lowest = _LOWEST.get(str(constant.ty))
    if lowest is None or abs(constant.value) != -lowest:
        return constant
    return tirx.FloatImm(str(constant.ty), math.copysign(math.inf, constant.value))
