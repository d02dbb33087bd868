"""Kernels as TVM lowers them, at the two stages that are looked at; loops are not unrolled, nor vectors made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from graphopt.targets.cuda.checks.numbers import operation

_MEETING = frozenset({"tvm_thread_allreduce", "tvm_storage_sync"})

_TO_LOOPS = tvm.transform.Sequential(
    [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerCrossThreadReduction(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.LiftThreadBinding(),
        s_tir.transform.ManifestSharedMemoryLocalStage(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerAutoCopy(),
        s_tir.transform.UnifyThreadBinding(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.InjectPermutedLayout(),
        s_tir.transform.AnnotateIrregularLoop(),
        s_tir.transform.InjectSoftwarePipeline(),
        s_tir.transform.TransformMmaBufferLayout(),
        s_tir.transform.LowerOpaqueBlock(),
    ]
)
_TO_BARRIERS = tvm.transform.Sequential(
    [
        tirx.transform.FlattenBuffer(),
        tirx.transform.VectorizeLoop(False),
        s_tir.transform.InjectVirtualThread(),
        s_tir.transform.InjectDoubleBuffer(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.ThreadSync("shared"),
        s_tir.transform.ThreadSync("shared.dyn"),
        s_tir.transform.LowerThreadAllreduce(),
        s_tir.transform.MergeSharedMemoryAllocations(),
    ]
)


def lowered(functions: Mapping[str, Any], target: tvm.target.Target) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scheduled PrimFuncs `functions` with buffers of several dimensions, and then flat, with barriers.

    Those whose threads share nothing are as they were at the second stage too: flat indices of open sizes take TVM long
    (the OCR detector's 16 s), and the second stage is for shared memory.
    """
    module = tvm.IRModule(dict(functions))
    loops = _functions(_TO_LOOPS(tirx.transform.BindTarget(target)(module)))
    sharing = tvm.IRModule({name: function for name, function in loops.items() if _shares(function)})
    return loops, {**loops, **_functions(_TO_BARRIERS(sharing))}


def _shares(function: Any) -> bool:
    """Whether threads of a block meet: in shared memory, at a barrier, or in a sum over threads."""
    found: list[bool] = []

    def allocation(node: Any) -> None:
        found.append(str(node.buffer.scope()).startswith("shared"))

    def call(node: Any) -> None:
        found.append(operation(node) in _MEETING)

    tvm_ffi.structural_walk(function.body, [(tirx.AllocBuffer, allocation), (tvm.ir.Call, call)])
    return any(found)


def synchronised(function: Any) -> Any:
    """One PrimFunc of the first stage at the second."""
    return next(iter(_functions(_TO_BARRIERS(tvm.IRModule({"main": function}))).values()))


def _functions(module: tvm.IRModule) -> dict[str, Any]:
    return {v.name_hint: f for v, f in module.functions_items()}
