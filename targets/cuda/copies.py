"""Asynchronous copies of integers, zeros where a condition fails: TVM writes those of floats alone.

Also zeros of 16 integers of 8 bits, which TVM 0.27 prints as an int4 of 16 arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.compilation_pipeline import get_tir_pipeline, register_tir_pipeline

PIPELINE = "graphopt_cuda"
_ASYNCHRONOUS, _COPY = "async_commit_queue_scope", "tirx.s_tir.cp_async_raw"
_BYTES = (4, 8, 16)


def _pipeline() -> tuple[Any, Any, Any]:
    """TVM's own, and then these on what runs on the device."""
    defaults: Any = get_tir_pipeline("s_tir")
    passes, host, device = defaults
    return passes, host, lambda: tvm.transform.Sequential([_copies, device()])


@tirx.transform.prim_func_pass(opt_level=0)
def _copies(function: Any, _module: Any, _context: Any) -> Any:
    def stage(found: Any) -> Any:
        if str(found.attr_key) != _ASYNCHRONOUS:
            return found
        return tirx.AttrStmt(
            found.node, found.attr_key, found.value, tvm_ffi.structural_map(found.body, (tirx.BufferStore, _copy))
        )

    body = tvm_ffi.structural_map(function.body, (tirx.AttrStmt, stage))
    return function.with_body(tvm_ffi.structural_map(body, (tirx.Broadcast, _broadcast)))


def _copy(store: Any) -> Any:
    """`store` as a copy, if it is of global to shared memory where a condition holds and of integer zeros elsewhere."""
    value, to = store.value, store.buffer
    if str(to.scope()) != "shared" or _name(value) != "prim.if_then_else":
        return store
    condition, read, other = value.args
    source = getattr(read, "source", None)  # of a load from memory
    from_, into = None if source is None else _first(read.indices[0]), _first(store.indices[0])
    size = tvm.DataType(str(value.ty.dtype)).itemsize
    if source is None or str(source.scope()) != "global" or from_ is None or into is None:
        return store
    if size not in _BYTES or not _is_zero(other):
        return store
    arguments = [to.data, into, source.data, from_, size, condition]
    return tirx.Evaluate(tirx.call_intrin(str(to.dtype), _COPY, *arguments))


def _name(value: Any) -> str:
    return str(getattr(getattr(value, "op", None), "name", ""))


def _is_zero(value: Any) -> bool:
    single: Any = value.value if isinstance(value, tirx.Broadcast) else value
    return isinstance(single, tirx.IntImm) and int(single) == 0


def _first(index: Any) -> Any:
    """Of indices that follow one another; None for others."""
    return index.base if isinstance(index, tirx.Ramp) and str(index.stride) == "1" else None


def _broadcast(value: Any) -> Any:
    """A constant of more than 4 integers of 8 bits as one of integers of 32."""
    kind = tvm.DataType(str(value.ty.dtype))
    if kind.bits != 8 or kind.lanes <= 4 or not isinstance(value.value, tirx.IntImm):
        return value
    four = np.full(4, int(value.value) & 255, np.uint8).view(np.int32)[0]
    return tirx.reinterpret(
        str(kind), tirx.Broadcast(tirx.IntImm("int32", int(four)), tirx.IntImm("int32", kind.lanes // 4))
    )


register_tir_pipeline(PIPELINE, _pipeline)
