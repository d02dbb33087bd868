"""The targets `opencl`, `metal`, `webgpu` and `rocm`: the same schedules as cuda's, written in another language.

What comes out is source (for AMD: assembly) for a runtime that graphopt has not. It is labelled as an export
everywhere: the artifact can be looked at and its kernels taken out of it, not run.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic.dataclasses import dataclass

from graphopt.base import Context, Program, Target
from graphopt.errors import HostError, LoweringError

if TYPE_CHECKING:
    import onnx_ir as ir
    import tvm

LABEL = "source-level export: written by TVM, neither run nor checked by graphopt"


@dataclass(frozen=True)
class Export(Target):
    """A language of GPU kernels that TVM writes."""

    falls_back: ClassVar[bool] = False
    file: ClassVar[str]
    needs: ClassVar[str]
    limits: ClassVar[Mapping[str, Any]]

    def build(self, model: ir.Model, context: Context) -> Program:
        """Write `model`'s kernels; the host code that would launch them is for this kind of CPU.

        Raises:
            LoweringError: naming each operator that can't be lowered or scheduled.
            HostError: this can't be written here.
        """
        import tvm
        from tvm import relax

        from graphopt.targets.cuda.kernels import schedule, to_loops
        from graphopt.targets.cuda.machine_code.link import to_library
        from graphopt.targets.llvm.cpu import machine_triple
        from graphopt.targets.lowering import lower
        from graphopt.targets.lowering.rounding import round_in_float32
        from graphopt.targets.lowering.virtual_machine import TO_VIRTUAL_MACHINE

        missing = self.missing()
        if missing:
            raise HostError(f"the {self.name} export is not possible on this machine: {missing}.")
        host = {"kind": "llvm", "mtriple": machine_triple()}
        target = tvm.target.Target({"kind": self.name, **self.limits, **dataclasses.asdict(self), "host": host})
        lowered = lower(model)
        with target:
            loops, nodes = to_loops(round_in_float32(lowered.module), lowered.sources)
            kernels, rules = schedule(loops, target, nodes)
            try:
                executable = relax.build(kernels, target, relax_pipeline=TO_VIRTUAL_MACHINE)
            except Exception as error:  # of many kinds
                said = " ".join(str(error).split())[-400:]
                raise LoweringError(f"TVM could not write the kernels for {self.name}: {said}") from error
        source = _source(executable, self.name)
        return Program(
            library=to_library(executable, None, source),
            weights=lowered.weights,
            inputs=lowered.inputs,
            outputs=lowered.outputs,
            files={self.file: source.encode()},
            report={
                "label": LABEL,
                "needs": self.needs,
                "kernels": [{"name": n, "schedule": r} for n, r in rules.items()],
            },
        )

    @classmethod
    def missing(cls) -> str:
        """What keeps TVM from writing this language here; empty when nothing does."""
        return ""

    @classmethod
    def status(cls) -> Mapping[str, Any]:
        """That this is an export, and whether it can be made here."""
        return {"ready": not cls.missing(), "runs_here": False, "what": LABEL, "needs": cls.needs} | (
            {"missing": cls.missing()} if cls.missing() else {}
        )


def _source(executable: tvm.runtime.Executable, kind: str) -> str:
    """All kernels of the executable's modules of `kind`."""
    waiting: list[Any] = [executable.mod]
    found: list[str] = []
    while waiting:
        module = waiting.pop()
        waiting.extend(module.imports)
        if module.kind == kind:
            found.append(module.inspect_source())
    return "".join(found)


_LIMITS = {"max_threads_per_block": 256, "max_shared_memory_per_block": 32 << 10}


@dataclass(frozen=True)
class Opencl(Export):
    """Export: OpenCL C."""

    name: ClassVar[str] = "opencl"
    file: ClassVar[str] = "kernels.cl"
    needs: ClassVar[str] = "a TVM runtime built with OpenCL"
    limits: ClassVar[Mapping[str, Any]] = {**_LIMITS, "thread_warp_size": 1}


@dataclass(frozen=True)
class Metal(Export):
    """Export: the Metal Shading Language."""

    name: ClassVar[str] = "metal"
    file: ClassVar[str] = "kernels.metal"
    needs: ClassVar[str] = "a TVM runtime built with Metal, on Apple's systems"
    limits: ClassVar[Mapping[str, Any]] = {**_LIMITS, "thread_warp_size": 32}


@dataclass(frozen=True)
class Webgpu(Export):
    """Export: WGSL."""

    name: ClassVar[str] = "webgpu"
    file: ClassVar[str] = "kernels.wgsl"
    needs: ClassVar[str] = "TVM's runtime for browsers"
    limits: ClassVar[Mapping[str, Any]] = {"max_num_threads": 256, "max_shared_memory_per_block": 16 << 10}


@dataclass(frozen=True)
class Rocm(Export):
    """Export: AMD GPU assembly, through ROCm's device libraries.

    `mcpu`: the GPU's architecture, such as gfx90a (MI200) or gfx942 (MI300).
    """

    name: ClassVar[str] = "rocm"
    mcpu: str = "gfx90a"
    file: ClassVar[str] = "kernels.s"
    needs: ClassVar[str] = "a TVM runtime built with ROCm"
    limits: ClassVar[Mapping[str, Any]] = {**_LIMITS, "thread_warp_size": 64}

    @classmethod
    def missing(cls) -> str:
        """ROCm, whose device libraries TVM links into AMD's kernels."""
        places = [os.environ.get("ROCM_PATH", ""), "/opt/rocm"]
        found = any(place and Path(place).is_dir() for place in places)
        return "" if found else "TVM links ROCm's device libraries, and there are none (ROCM_PATH or /opt/rocm)"
