"""The whole way from a lowered module to a shared library, one named step after the other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Mapping

import tvm
from tvm import relax, tirx
from tvm.relax import transform

from graphopt.base import Direct
from graphopt.errors import LoweringError
from graphopt.targets.llvm.cpu import Cpu
from graphopt.targets.llvm.direct import direct
from graphopt.targets.llvm.merge import merge_calls
from graphopt.targets.llvm.schedule import schedule_module
from graphopt.targets.lowering.identities import exact_identities
from graphopt.targets.lowering.lower import Lowered
from graphopt.targets.lowering.origins import Origin, origins_of_functions
from graphopt.targets.lowering.rounding import round_in_float32
from graphopt.targets.lowering.size_order import numbers_in_order
from graphopt.targets.lowering.virtual_machine import TO_VIRTUAL_MACHINE

UNCHECKED = {"tirx.disable_assert": True}
"""Kernels don't check the types and shapes of arguments once more, ``main`` has: a third of the compile time."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """An executable, the kernels that no schedule applied to, and the bytes of its workspaces (see `merge`).

    `origins`: what each kernel computes. `direct`: how to call it without the virtual machine, where that can be.
    """

    executable: tvm.runtime.Executable
    unscheduled: list[str]
    workspaces: list[int | str]
    origins: dict[str, Origin]
    direct: Direct | None


@dataclasses.dataclass(frozen=True)
class Merged:
    """A module whose ``main`` calls runs of scheduled kernels; the other fields are those of `Compiled`."""

    module: tvm.IRModule
    unscheduled: list[str]
    workspaces: list[int | str]
    origins: dict[str, Origin]


def compile_module(lowered: Lowered, kernels: Mapping[str, tirx.PrimFunc], cpu: Cpu, parallel: bool) -> Compiled:
    """Compile the module for `cpu`: operators to loops, loops fused, scheduled, and turned into machine code.

    `kernels` are the functions that the module calls by symbol; they are compiled as they are.

    Raises:
        LoweringError: TVM gave up.
    """
    with compiling(cpu):
        merged = merge_module(lowered, kernels, cpu, parallel)
        executable = relax.build(merged.module, cpu.tvm_target(), relax_pipeline=to_virtual_machine())
        called = direct(merged.module, lowered)
        return Compiled(executable, merged.unscheduled, merged.workspaces, merged.origins, called)


def merge_module(lowered: Lowered, kernels: Mapping[str, tirx.PrimFunc], cpu: Cpu, parallel: bool) -> Merged:
    """Everything that `compile_module` does before the virtual machine comes in; to be called within `compiling`."""
    fuse = tvm.transform.Sequential(
        [
            transform.DecomposeOpsForInference(),
            transform.CanonicalizeBindings(),
            transform.DeadCodeElimination(),
            relax.backend.DispatchSampling(),
            relax.backend.DispatchSortScan(),
            transform.LegalizeOps(),
            transform.AnnotateTIROpPattern(),
            transform.FoldConstant(),
            transform.FuseOps(),
        ]
    )
    to_kernels = tvm.transform.Sequential([transform.FuseTIR(), numbers_in_order, transform.DeadCodeElimination()])
    fused = fuse(round_in_float32(lowered.module))
    origins = origins_of_functions(fused, lowered.sources)
    scheduled, unscheduled = schedule_module(exact_identities(to_kernels(fused)), cpu, parallel)
    for symbol, kernel in kernels.items():
        scheduled[symbol] = kernel.with_attr("global_symbol", symbol)
    views = tvm.transform.Sequential([transform.RewriteDataflowReshape(), transform.ToNonDataflow()])
    merged, workspaces = merge_calls(views(scheduled))
    return Merged(merged, unscheduled, workspaces, origins)


@contextlib.contextmanager
def compiling(cpu: Cpu) -> Generator[None]:
    """TVM compiles for `cpu` within; whatever it raises becomes a `LoweringError`."""
    try:
        with cpu.tvm_target(), tvm.transform.PassContext(config=UNCHECKED):
            yield
    except Exception as error:  # whatever TVM raises here, from its C++ or its Python
        reason = " ".join(str(error).split())[-300:] or type(error).__name__
        raise LoweringError(
            f"TVM imported the model and could not compile it for {cpu.mcpu}: {reason}. "
            "Giving open dimensions sizes may be enough."
        ) from error


def to_virtual_machine() -> tvm.transform.Pass:
    """Plan memory and lower what calls the kernels to the virtual machine's instructions."""
    no_aliases = tvm.transform.module_pass(without_aliases, opt_level=0)
    return tvm.transform.Sequential([TO_VIRTUAL_MACHINE, no_aliases])


def without_aliases(module: tvm.IRModule, _: tvm.transform.PassContext | None = None) -> tvm.IRModule:
    """Say of every function that its buffers don't overlap, of runs and shape functions too: so it is for all of them.

    TVM 0.27 takes the word of the last function of a module for all. With a shape function in last place, which does
    not say so, LLVM stored every accumulator after every step: kernels ran at half their speed.
    """
    functions = {
        variable: function.with_attr("tirx.noalias", True) if isinstance(function, tirx.PrimFunc) else function
        for variable, function in module.functions_items()
    }
    return tvm.IRModule(functions, attrs=module.attrs)  # pyright: ignore[reportAttributeAccessIssue]
