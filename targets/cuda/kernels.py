"""From a lowered module to GPU kernels: operators to loops, loops fused, loops bound to blocks and threads."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.relax import transform
from tvm.s_tir import SBlock, dlight

from graphopt.errors import LoweringError
from graphopt.targets.cuda.account.work import Launch
from graphopt.targets.cuda.graphs import Graphs, captured, count, open_sizes, with_planned_workspaces
from graphopt.targets.cuda.lowering.half import sum_in_float32
from graphopt.targets.cuda.lowering.integer.add_borders import as_elementwise
from graphopt.targets.cuda.lowering.transposed import read_transposed
from graphopt.targets.cuda.schedules.copies import PIPELINE
from graphopt.targets.cuda.schedules.rounding import round_products
from graphopt.targets.cuda.schedules.short_sums import ShortSums
from graphopt.targets.cuda.schedules.tensor_cores import TensorCores
from graphopt.targets.cuda.schedules.unit_sums import without_unit_sums
from graphopt.targets.lowering.origins import Origin, at_products, origins_of_functions
from graphopt.targets.lowering.size_order import numbers_in_order
from graphopt.targets.lowering.virtual_machine import INSTRUCTIONS, MEMORY_PLAN

IS_SCHEDULED = "tirx.is_scheduled"


def to_loops(module: tvm.IRModule, sources: Mapping[str, Origin]) -> tuple[tvm.IRModule, dict[str, Origin]]:
    """Legalise and fuse `module`; also gives what each kernel computes of the ONNX model, by `sources` of the lowering.

    Raises:
        LoweringError: TVM can't write an operator as loops.
    """
    fuse = tvm.transform.Sequential(
        [
            transform.CanonicalizeBindings(),
            transform.DeadCodeElimination(),
            relax.backend.DispatchSampling(),
            relax.backend.DispatchSortScan(),
            transform.LegalizeOps(),
            transform.AnnotateTIROpPattern(),
            tvm.transform.module_pass(as_elementwise, opt_level=0),
            transform.FoldConstant(),
            transform.FuseOps(),
        ]
    )
    with _tvm("turn every operator into loops"):
        module = transform.DecomposeOpsForInference()(module)
        module, sources = sum_in_float32(module, at_products(module, sources))
        fused = fuse(read_transposed(module))
    origins = origins_of_functions(fused, sources)
    kernels = [transform.FuseTIR(), numbers_in_order]
    finish = [*kernels, transform.RewriteDataflowReshape(), transform.DeadCodeElimination()]
    return round_products(tvm.transform.Sequential(finish)(fused)), origins


def schedule(
    module: tvm.IRModule, target: tvm.target.Target, origins: Mapping[str, Origin]
) -> tuple[tvm.IRModule, dict[str, str]]:
    """Give every kernel blocks and threads by the first of dlight's GPU rules that fits it.

    Returns the module and the rule each kernel got.

    Raises:
        LoweringError: naming each kernel no rule fits, the ONNX nodes it computes, and why.
    """
    products = [
        *([TensorCores()] if target.kind.name == "cuda" else []),  # pyright: ignore[reportAttributeAccessIssue]  # wmma is CUDA's
        dlight.gpu.Matmul(),
    ]
    reductions = [dlight.gpu.GEMV(), dlight.gpu.Reduction(), dlight.gpu.GeneralReduction()]
    used: dict[str, str] = {}
    refused: list[str] = []
    for variable, function in module.functions_items():
        if not isinstance(function, tirx.PrimFunc) or _is_scheduled(function):
            continue
        rules = [*products, ShortSums(), *([] if _convolves(function) else reductions), dlight.gpu.Fallback()]
        scheduled, rule = _first_that_fits(without_unit_sums(function), target, rules)
        if scheduled is None:
            computed = ", ".join(_nodes(origins, variable.name_hint)) or "no node of its own"
            refused.append(f"{variable.name_hint} (of {computed}): {rule}")
        else:
            module[variable] = scheduled
            used[variable.name_hint] = rule
    if refused:
        raise LoweringError(
            f"{len(refused)} kernel(s) can't be scheduled for a GPU: {'; '.join(refused)}. "
            "Compile the model for llvm, or replace these operators."
        )
    return module, used


def _nodes(origins: Mapping[str, Origin], name: str) -> tuple[str, ...]:
    return origins[name].nodes if name in origins else ()


def _convolves(function: tirx.PrimFunc) -> bool:
    """Convolutions that no product's schedule takes: grouped ones sum over few taps and channels, which a thread does
    alone while several would only wait; of a transposed one GeneralReduction keeps whole sums of open size to a thread.
    """
    names: list[str] = []

    def block(found: Any) -> None:
        names.append(str(found.name_hint).lower())

    body: Any = function
    tvm_ffi.structural_walk(body.body, (SBlock, block))
    return any("conv" in name or "dilate" in name for name in names)


def _is_scheduled(function: tirx.PrimFunc) -> bool:
    return bool(function.attrs.get(IS_SCHEDULED))


def _first_that_fits(
    function: tirx.PrimFunc, target: tvm.target.Target, rules: list[Any]
) -> tuple[tirx.PrimFunc | None, str]:
    """The function scheduled, and the rule's name; or None, and what the rules said."""
    said = "no rule fits"
    for rule in rules:
        try:
            made = rule.apply(function, target, False)
        except Exception as error:  # TVM's schedule primitives raise many kinds for loops they can't transform
            said = f"{type(rule).__name__}: {' '.join(str(error).split())[-160:]}"
            continue
        if made is not None:
            first = made[0] if isinstance(made, list) else made
            return first.mod["main"].with_attr(IS_SCHEDULED, True), type(rule).__name__
    return None, said


def build(
    module: tvm.IRModule, target: tvm.target.Target, launched: Mapping[str, Sequence[Launch]], *, graphs: bool = True
) -> tuple[tvm.runtime.Executable, Graphs]:
    """Compile scheduled kernels to CUDA C, and what calls them to the virtual machine's instructions.

    `launched`: the kernels of each function. Also gives what of them is launched as CUDA graphs, where `graphs` are
    wanted.

    Raises:
        LoweringError: TVM can't generate code for a kernel.
    """
    # cp.async where a schedule asks for it; no buffer in another's memory, whose type tensor-core stores then mistake.
    settings = {"tirx.use_async_copy": True, "tirx.disable_storage_rewrite": True}
    left_out = "switched off"
    with _tvm("write the kernels in CUDA C"), tvm.transform.PassContext(config=settings):
        if graphs and not open_sizes(module):
            module = with_planned_workspaces(module)
        module = MEMORY_PLAN(module)
        if graphs:
            module, left_out = captured(module)
        executable = relax.build(module, target, relax_pipeline=INSTRUCTIONS, tir_pipeline=PIPELINE)
    return executable, count(module, launched, left_out)


@contextlib.contextmanager
def _tvm(task: str) -> Generator[None, None, None]:
    """TVM's failures, which are of many kinds, as one `LoweringError` that says at which task."""
    try:
        yield
    except Exception as error:
        raise LoweringError(
            f"TVM could not {task}: {' '.join(str(error).split())[:400]}. Giving the model's open dimensions sizes "
            "(--dim NAME=SIZE) may be enough; otherwise compile it for llvm."
        ) from error
