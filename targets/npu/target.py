"""The `npu` target: a simulated accelerator for quantized convolutions and matrix products beside a CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic.dataclasses import dataclass

from graphopt.base import Context, Program, Target

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Npu(Target):
    """A simulated NPU, bit exact and cycle counted; what it can't run is compiled for the CPU (llvm).

    `machine`: a preset (edge, edge-dram, gemmini-16, mobile-4k, tpuv1) or the path of a hardware description (TOML).
    `mcpu`: the CPU for the rest, as in the llvm target.
    `cpu_gmacs`: how many integer multiply-adds per ns the CPU beside the NPU does; what it is faster at stays there.
    """

    name: ClassVar[str] = "npu"
    machine: str = "edge"
    mcpu: str = "native"
    cpu_gmacs: float = 2.0

    def build(self, model: ir.Model, context: Context) -> Program:
        """Compile the quantized operators of `model` to command streams, the rest for the CPU.

        A model without Q/DQ pairs runs on the CPU as a whole; the report says so for each node.

        Raises:
            LoweringError: naming each operator that can't be lowered for the CPU.
            UsageError: no such machine, or its description is wrong.
        """
        from graphopt.targets.llvm import Llvm
        from graphopt.targets.npu.asm import disassemble
        from graphopt.targets.npu.machine import load_machine
        from graphopt.targets.npu.report import note, report
        from graphopt.targets.npu.rewrite import offload

        machine = load_machine(self.machine)
        model = model.clone()
        offloaded, left = offload(model, machine, self.cpu_gmacs)
        program = Llvm(mcpu=self.mcpu).build(model, context)
        found = report(machine, offloaded, left)
        program.report = {"npu": found, "cpu": program.report, "notes": [note(found)]}
        program.files["npu/machine.json"] = json.dumps(json.loads(machine.to_json()), indent=1).encode()
        for index, item in enumerate(offloaded):
            program.files[f"npu/{index:03d}.asm"] = disassemble(item.stream).encode()
        return program

    @classmethod
    def status(cls) -> Mapping[str, Any]:
        """The machines that come with graphopt; the CPU part needs what the llvm target needs."""
        from graphopt.targets.llvm import Llvm
        from graphopt.targets.npu.machine import load_machine, runnable

        cpu = Llvm.status()
        machines = {name: load_machine(name).summary for name in runnable()}
        return {"ready": cpu["ready"], "simulated": True, "machines": machines, "linker": cpu["linker"]}
