"""A check of GPU schedules without a GPU: the scheduled loops run one thread after the other, on the CPU.

Every loop bound to a block or thread index becomes a serial loop, and LLVM compiles the result. What a thread
loads into shared memory for its block is then loaded anew by each, so results are those of the schedule: wrong
indices, tiles, predicates and reductions show. Barriers, races, CUDA C and the GPU itself are not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tvm
import tvm_ffi
from tvm import relax, tirx

from graphopt.base import Program
from graphopt.targets.cuda.arch import tvm_target
from graphopt.targets.cuda.kernels import schedule, to_loops
from graphopt.targets.cuda.lowering.lower import lower_for_gpu
from graphopt.targets.llvm.cpu import machine_triple
from graphopt.targets.llvm.link import to_library
from graphopt.targets.lowering.virtual_machine import TO_VIRTUAL_MACHINE

if TYPE_CHECKING:
    import onnx_ir as ir


def serial_program(model: ir.Model, arch: str) -> Program:
    """The program `Cuda(arch).build` schedules, its threads made serial, for this machine's CPU.

    Raises:
        LoweringError: as `Cuda.build` does.
    """
    gpu, lowered = tvm_target(arch), lower_for_gpu(model)[0]
    with gpu:
        loops, origins = to_loops(lowered.module, lowered.sources)
        kernels, rules = schedule(loops, gpu, origins)
    triple = machine_triple()
    cpu = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    with cpu:
        executable = relax.build(serialise(kernels), cpu, relax_pipeline=TO_VIRTUAL_MACHINE)
    return Program(
        library=to_library(executable, triple),
        weights=lowered.weights,
        inputs=lowered.inputs,
        outputs=lowered.outputs,
        report={"schedules": rules},
    )


def serialise(module: tvm.IRModule) -> tvm.IRModule:
    """`module` with every thread-bound loop of its kernels made serial."""
    made = {
        variable: tvm_ffi.structural_map(function, (tirx.For, _serial_loop))
        for variable, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }
    for variable, function in made.items():
        module[variable] = function
    return module


def _serial_loop(loop: tirx.For) -> tirx.For:
    if loop.kind != tirx.ForKind.THREAD_BINDING:
        return loop
    return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)
