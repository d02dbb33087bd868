"""The `cuda` target: machine code for an NVIDIA GPU, made on any machine."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from graphopt.base import Context, Program, Target
from graphopt.targets.cuda.account.report import report, works
from graphopt.targets.cuda.arch import as_tuple, check_archs, devices, known_archs, tvm_target
from graphopt.targets.cuda.machine_code.bfloat16 import with_shared_loads
from graphopt.targets.cuda.machine_code.compiler import Binary, routes
from graphopt.targets.cuda.machine_code.fatbin import fatbin
from graphopt.targets.cuda.machine_code.spills import compile_without_spills

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Cuda(Target):
    """Kernels for an NVIDIA GPU, compiled without one; the artifact runs where there is one.

    `arch`: the GPU's architecture, such as sm_80 (A100) or sm_90 (H100), or several, as in [sm_80,sm_90]: kernels are
    scheduled for the oldest and compiled for each. `compiler`: nvcc, nvrtc, or source to leave the CUDA C to be
    compiled beside the GPU; best takes the first there is. `graphs`: where no size is open, kernels that touch neither
    inputs nor outputs are launched together, as CUDA graphs.
    """

    name: ClassVar[str] = "cuda"
    arch: Annotated[str | tuple[str, ...], AfterValidator(check_archs)] = "sm_80"
    compiler: Literal["best", "nvcc", "nvrtc", "source"] = "best"
    graphs: bool = True

    def build(self, model: ir.Model, context: Context) -> Program:
        """Compile `model`'s kernels for the GPU, and the host code that calls them for this kind of CPU.

        Raises:
            LoweringError: naming each operator that can't be lowered or scheduled; or a compiler's refusal.
        """
        from tvm import tirx

        from graphopt.targets.cuda.account.work import launches
        from graphopt.targets.cuda.checks import check
        from graphopt.targets.cuda.kernels import build, schedule, to_loops
        from graphopt.targets.cuda.lowering.lower import lower_for_gpu
        from graphopt.targets.cuda.machine_code.link import cuda_source, to_library

        archs = as_tuple(self.arch)
        target = tvm_target(archs[0])
        lowered, integer = lower_for_gpu(model)
        with target:
            module, origins = to_loops(lowered.module, lowered.sources)
            loops = {v.name_hint: f for v, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}
            kernels, rules = schedule(module, target, origins)
            checks = check({name: kernels[name] for name in rules}, target, origins, archs[0])
            launched = {name: launches(kernels[name]) for name in rules}
            executable, graphs = build(kernels, target, launched, graphs=self.graphs)
        source = cuda_source(executable)
        written = with_shared_loads(source)
        route = None if self.compiler == "best" else self.compiler
        with ThreadPoolExecutor() as pool:  # each arch is a process of the compiler's, or a call that lets others run
            made = pool.map(functools.partial(compile_without_spills, written, route=route), archs)
            binaries = dict(zip(archs, made, strict=True))
        cubins = {arch: binary.cubin for arch, binary in binaries.items() if binary.cubin is not None}
        todo = works(loops, launched, origins, rules)
        return Program(
            library=to_library(executable, fatbin(cubins) if cubins else None, source),
            weights=lowered.weights,
            inputs=lowered.inputs,
            outputs=lowered.outputs,
            device="cuda",
            files=_files(written, binaries),
            report=report(binaries, rules, origins, launched, todo, written, checks, graphs) | {"integer": integer},
        )

    @classmethod
    def status(cls) -> Mapping[str, Any]:
        """Which compiler would be used here, and whether there is a GPU to run on."""
        found = devices()
        return {
            "ready": True,
            "compilers": dict(routes()),
            "devices": found,
            "runs_here": bool(found),
            "archs": {arch: ", ".join(gpus) for arch, gpus in known_archs().items()},
        }


def _files(source: str, binaries: Mapping[str, Binary]) -> dict[str, bytes]:
    files = {"kernels.cu": source.encode()}
    for arch, binary in binaries.items():
        if binary.cubin is not None:
            files |= {f"kernels.{arch}.cubin": binary.cubin, f"ptxas.{arch}.log": binary.log.encode()}
    return files
