"""The `llvm` target: machine code for a CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import Context, Program, Target

if TYPE_CHECKING:
    import onnx_ir as ir
    from tvm import tirx

    from graphopt.packed import Packed
    from graphopt.targets.llvm.cpu import Cpu
    from graphopt.targets.llvm.plan.choice import Choice, Choices
    from graphopt.targets.lowering import Lowered


@dataclass(frozen=True)
class Llvm(Target):
    """Machine code for a CPU: `native` or a named one (x86-64-v3, znver3, neoverse-n1...).

    `mcpu`: the CPU that runs the artifact; its instructions are used, so no older one can run it.
    `threads`: 1 compiles kernels without any thread hand-over; 0 leaves the number to the run.
    `tune`: measure the best few kernels of each problem here, and take the fastest (with all cores where `threads`
    is 0). Measurements are kept in the cache directory.
    """

    name: ClassVar[str] = "llvm"
    mcpu: str = "native"
    threads: int = Field(default=0, ge=0, le=1024)
    tune: bool = False

    def build(self, model: ir.Model, context: Context) -> Program:
        """Compile `model` for the CPU. Quantized layers run on integers where that is estimated to be faster.

        The report's `integer` has the account of each of them, and `sparse` that of layers with many zeros.

        Raises:
            LoweringError: naming each operator that can't be lowered.
            HostError: no linker.
            UsageError: an unknown CPU; tuning for another CPU than this machine's.
        """
        from graphopt.targets.llvm.link import to_library
        from graphopt.targets.llvm.pipeline import compile_module

        cpu, lowered, kernels, choices = self.lower(model, unpack=True)
        compiled = compile_module(lowered, kernels, cpu, self.threads != 1)
        return Program(
            library=to_library(compiled.executable, cpu.triple),
            weights=lowered.weights,
            packed=_smaller(choices.packed, lowered.weights),
            inputs=lowered.inputs,
            outputs=lowered.outputs,
            cpu_features=sorted(cpu.features),
            direct=compiled.direct,
            report={
                "cpu": cpu.mcpu,
                "triple": cpu.triple,
                "threads": self.threads,
                "unscheduled": compiled.unscheduled,
                "activation_bytes": compiled.workspaces,
                "choices": {symbol: _described(choice) for symbol, choice in choices.made.items()},
                "integer": choices.integer,
                "sparse": choices.sparse,
                "kernels": {name: dataclasses.asdict(origin) for name, origin in compiled.origins.items()},
            },
        )

    def weight_bits(self) -> int:
        """7 on x86 without VNNI, whose `vpmaddubsw` adds two products of uint8 and int8 in int16: they fit then."""
        from graphopt.targets.llvm.cpu import resolve
        from graphopt.targets.llvm.kernels.arithmetic import saturates

        cpu = resolve(self.mcpu)
        return 7 if saturates(cpu.lanes, cpu.features) else 8

    def lower(self, model: ir.Model, unpack: bool = False) -> tuple[Cpu, Lowered, dict[str, tirx.PrimFunc], Choices]:
        """The CPU, the module for it, the kernels that the module calls, and how they were chosen; see `build`.

        `unpack`: the program's loader makes weights of few bits float32, so that no run has to.
        """
        from graphopt.artifact.runtime import available_threads
        from graphopt.targets.llvm.cpu import resolve
        from graphopt.targets.llvm.plan import check, plan, turn
        from graphopt.targets.llvm.plan.choice import Choices
        from graphopt.targets.llvm.tune import check_here, tune
        from graphopt.targets.lowering import lower
        from graphopt.targets.lowering.decompose.halves import sum_in_float32

        cpu = resolve(self.mcpu)
        parallel = self.threads != 1
        if self.tune:
            check_here(cpu)
        kernels: dict[str, tirx.PrimFunc] = {}
        choices = Choices(unpack=unpack)

        def onto_kernels(canonical: ir.Model) -> None:
            sum_in_float32(canonical)
            if self.tune:
                met = Choices(unpack=unpack)
                plan(canonical.clone(), cpu, parallel, met)
                choices.known = tune(met.problems, cpu, self.threads or available_threads())
            kernels.update(plan(canonical, cpu, parallel, choices))
            kernels.update(turn(canonical, cpu, parallel))
            kernels.update(check(canonical))

        lowered = lower(model, onto_kernels)
        return cpu, lowered, kernels, choices

    @classmethod
    def status(cls) -> Mapping[str, Any]:
        """The native CPU, the named ones, and whether there is a linker (none: nothing can be compiled)."""
        from graphopt.targets.llvm.cpu import named_cpus, native
        from graphopt.targets.llvm.link import WAY_OUT, linker

        cpu = native()
        command = linker(cpu.triple)
        return {
            "ready": command is not None,
            "native": cpu.mcpu,
            "lanes": cpu.lanes,
            "linker": command or f"none: {WAY_OUT}",
            "named": [name for name, named in named_cpus().items() if linker(named.triple)],
            "no_linker_for": [name for name, named in named_cpus().items() if not linker(named.triple)],
        }


def _smaller(packed: Mapping[str, Packed], weights: Mapping[str, np.ndarray]) -> dict[str, Packed]:
    """Those of `packed` that are smaller than the weights, and make the very same."""
    found = {name: few for name, few in packed.items() if name in weights and few.nbytes < weights[name].nbytes}
    return {name: few for name, few in found.items() if np.array_equal(few.array(), weights[name])}


def _described(choice: Choice) -> dict[str, Any]:
    """A choice for the report: estimated, and measured where it was tuned, with the others that were measured."""
    described: dict[str, Any] = {"candidate": str(choice.candidate), "estimated_cycles": round(choice.candidate.cycles)}
    if choice.microseconds:
        described["measured_us"] = choice.microseconds[str(choice.candidate)]
        described["candidates_us"] = dict(choice.microseconds)
    return described
