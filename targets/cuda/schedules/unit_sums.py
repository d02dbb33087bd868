"""Sums of one term become plain values.

TVM's rules drop loops that run once. A sum over nothing but such loops is then taken for a sum still, and what follows
it, a bias say, is put both into its start and into its only step: twice.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx


def without_unit_sums(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """`function` with each reduction whose axes all have size 1 written as a value of its start and its one term."""
    return tvm_ffi.structural_map(function, (s_tir.SBlock, _plain))


def _plain(block: Any) -> Any:
    axes = [axis for axis in block.iter_vars if axis.iter_type == tirx.IterVar.CommReduce]
    if block.init is None or not all(isinstance(a.dom.extent, tirx.IntImm) and a.dom.extent.value == 1 for a in axes):
        return block
    store, start = block.body, block.init
    if not isinstance(store, tirx.BufferStore) or not isinstance(start, tirx.BufferStore):
        return block

    def value(load: Any) -> Any:
        same = load.source.same_as(store.buffer) and all(map(_equal, load.indices, store.indices))
        return start.value if same else load

    spatial = [
        tirx.IterVar(axis.dom, axis.var, tirx.IterVar.DataPar, axis.thread_tag, axis.span) for axis in block.iter_vars
    ]
    term = tvm_ffi.structural_map(store.value, (tvm.ir.TensorLoad, value))
    body = tirx.BufferStore(store.buffer, term, store.indices)
    return s_tir.SBlock(
        spatial, block.reads, block.writes, block.name_hint, body, None, block.alloc_buffers, block.match_buffers,
        block.annotations,
    )  # fmt: skip


def _equal(one: Any, other: Any) -> bool:
    return tvm_ffi.structural_equal(one, other)
