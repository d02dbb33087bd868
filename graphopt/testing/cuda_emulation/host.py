"""A model's kernels before they are scheduled, compiled for this CPU: what each is called with, and what it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.base import Program

if TYPE_CHECKING:
    import onnx_ir as ir
    import tvm

Array = np.ndarray[Any, Any]
Argument = Array | int | float | bool


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of `function`. `arguments`: arrays and numbers in its order; those at `written` are what it gives."""

    function: str
    arguments: list[Argument]
    written: tuple[int, ...]


def calls(model: ir.Model, feeds: Mapping[str, Array], arch: str) -> tuple[list[Call], dict[str, Array]]:
    """The first call of each function at each combination of shapes when `model` runs on `feeds`, and its outputs.

    Functions that TVM writes for a GPU from the start, as sorting, are not among them.

    Raises:
        LoweringError: the model can't be lowered.
        DataError: the feeds don't fit it.
    """
    from graphopt import artifact

    program, written = _program(model, arch)
    found: dict[Any, Call] = {}

    def around(function: object, name: str, before: bool, result: object, *arguments: Any) -> None:
        """After the call: inputs are as before it, none is written to."""
        key = name, *(tuple(getattr(one, "shape", ())) for one in arguments)
        if not before and name in written and key not in found:
            found[key] = Call(name, [_taken(one) for one in arguments], written[name])

    with artifact.assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        executable.instrument(around)
        outputs = executable.run(feeds)
    return list(found.values()), outputs


def _taken(argument: Any) -> Argument:
    from graphopt.artifact import tensors

    return tensors.to_array(argument) if hasattr(argument, "shape") else argument


def _program(model: ir.Model, arch: str) -> tuple[Program, dict[str, tuple[int, ...]]]:
    """The program for the CPU, and which parameters each of its functions writes, where it is the GPU's function."""
    from tvm import relax

    from graphopt.targets.cuda.arch import tvm_target
    from graphopt.targets.cuda.kernels import to_loops
    from graphopt.targets.cuda.lowering.lower import lower_for_gpu
    from graphopt.targets.llvm.cpu import native
    from graphopt.targets.llvm.link import to_library
    from graphopt.targets.lowering.virtual_machine import TO_VIRTUAL_MACHINE

    lowered, here = lower_for_gpu(model)[0], native()
    gpu = tvm_target(arch)
    cpu = here.tvm_target()
    with gpu:
        wanted = _functions(to_loops(lowered.module, lowered.sources)[0])
    with cpu:
        module = to_loops(lowered.module, lowered.sources)[0]
        executable = relax.build(module, cpu, relax_pipeline=TO_VIRTUAL_MACHINE)
    program = Program(
        library=to_library(executable, here.triple),
        weights=lowered.weights,
        inputs=lowered.inputs,
        outputs=lowered.outputs,
        report={},
    )
    own = _functions(module)
    same = (n for n, f in own.items() if n in wanted and len(f.params) == len(wanted[n].params))
    return program, {name: _written(own[name]) for name in same}


def _functions(module: tvm.IRModule) -> dict[str, Any]:
    from tvm import tirx

    return {v.name_hint: f for v, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}


def _written(function: Any) -> tuple[int, ...]:
    """Positions of the parameters that a PrimFunc stores to."""
    import tvm_ffi
    from tvm.s_tir.stmt import SBlock

    stored: list[Any] = []

    def block(found: Any) -> None:
        stored.extend(region.source for region in found.writes)

    tvm_ffi.structural_walk(function.body, (SBlock, block))
    return tuple(i for i, one in enumerate(function.params) if any(one.same_as(buffer) for buffer in stored))
