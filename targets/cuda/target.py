"""The `cuda` target: machine code for an NVIDIA GPU, made on any machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from graphopt.base import Context, Program, Target
from graphopt.targets.cuda.arch import check_arch, devices, known_archs, tvm_target
from graphopt.targets.cuda.compiler import Binary, compile_source, routes
from graphopt.targets.cuda.ptxas import parse

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Cuda(Target):
    """Kernels for an NVIDIA GPU, compiled without one; the artifact runs where there is one.

    `arch`: the GPU's architecture, such as sm_80 (A100) or sm_90 (H100). `compiler`: nvcc, nvrtc, or source to leave
    the CUDA C to be compiled beside the GPU; best takes the first there is.
    """

    name: ClassVar[str] = "cuda"
    arch: Annotated[str, AfterValidator(check_arch)] = "sm_80"
    compiler: Literal["best", "nvcc", "nvrtc", "source"] = "best"

    def build(self, model: ir.Model, context: Context) -> Program:
        """Compile `model`'s kernels for the GPU, and the host code that calls them for this kind of CPU.

        Raises:
            LoweringError: naming each operator that can't be lowered or scheduled; or a compiler's refusal.
        """
        from graphopt.targets.cuda.kernels import build, schedule, to_loops
        from graphopt.targets.cuda.link import cuda_source, to_library
        from graphopt.targets.lowering import lower

        target = tvm_target(self.arch)
        lowered = lower(model)
        with target:
            loops, nodes = to_loops(lowered.module, lowered.sources)
            kernels, rules = schedule(loops, target, nodes)
            executable = build(kernels, target)
        source = cuda_source(executable)
        binary = compile_source(source, self.arch, None if self.compiler == "best" else self.compiler)
        return Program(
            library=to_library(executable, binary.cubin, source),
            weights=lowered.weights,
            inputs=lowered.inputs,
            outputs=lowered.outputs,
            device="cuda",
            files=_files(source, binary, self.arch),
            report=_report(binary, self.arch, rules, nodes),
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


def _files(source: str, binary: Binary, arch: str) -> dict[str, bytes]:
    files = {"kernels.cu": source.encode()}
    if binary.cubin is not None:
        files |= {f"kernels.{arch}.cubin": binary.cubin, f"ptxas.{arch}.log": binary.log.encode()}
    return files


def _report(binary: Binary, arch: str, rules: dict[str, str], nodes: dict[str, list[str]]) -> dict[str, Any]:
    """Facts of the build; nothing of it was measured by running."""
    kernels = [
        {**dataclasses.asdict(use), "schedule": rules.get(use.function, ""), "nodes": nodes.get(use.function, [])}
        for use in parse(binary.log)
    ] or [{"name": name, "schedule": rule, "nodes": nodes.get(name, [])} for name, rule in rules.items()]
    return {
        "arch": arch,
        "route": binary.route,
        "compiler": binary.compiler,
        "embedded": "CUDA C, compiled when loaded beside a GPU" if binary.cubin is None else "cubin",
        "kernels": kernels,
        "spilling": [kernel["name"] for kernel in kernels if kernel.get("spill_stores") or kernel.get("spill_loads")],
        "run": "not run: compiling never runs the kernels" if devices() else "not run: no CUDA device on this machine",
    }
