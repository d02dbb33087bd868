"""From calls of kernels to the instructions of TVM's virtual machine, for every target that compiles to it."""

from __future__ import annotations

import tvm
from tvm.relax import transform

from graphopt.targets.lowering.size_order import sizes_in_order

MEMORY_PLAN = tvm.transform.Sequential(
    [
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
    ]
)
"""Kernels write into tensors that are given to them, and which share memory where their lives don't overlap."""

INSTRUCTIONS = tvm.transform.Sequential(
    [
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        sizes_in_order,
        transform.AttachGlobalSymbol(),
    ]
)
"""What calls the kernels as the virtual machine's instructions; sizes computed as it runs."""

TO_VIRTUAL_MACHINE = tvm.transform.Sequential([MEMORY_PLAN, INSTRUCTIONS])
