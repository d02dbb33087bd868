"""The CPU a model is compiled for: named ones are data (`cpus.toml`), `native` is this machine's."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import platform
import tomllib
from importlib import resources
from typing import Any

from graphopt.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Cpu:
    """What code generation needs to know.

    `mcpu`, `triple`: LLVM's names of the CPU and of the system. `without`: features that LLVM believes this CPU to
    have and that it lacks, as a virtual machine may hide some.
    """

    mcpu: str
    triple: str
    without: tuple[str, ...] = ()

    @functools.cached_property
    def features(self) -> frozenset[str]:
        """LLVM's names of the features its code for this CPU may use."""
        from tvm.target import codegen

        return frozenset(map(str, codegen.llvm_get_cpu_features(self.tvm_target()))) - set(self.without)

    @property
    def lanes(self) -> int:
        """float32 values in one vector register."""
        lanes: dict[str, int] = _data()["lanes"]
        return max((lanes[feature] for feature in self.features & lanes.keys()), default=1)

    @property
    def registers(self) -> int:
        """Vector registers."""
        return 32 if self.lanes == 16 or self.triple.startswith("aarch64") else 16

    def tvm_target(self) -> Any:
        """The `tvm.target.Target`."""
        from tvm.target import Target

        disabled = [f"-{feature}" for feature in self.without]
        return Target({"kind": "llvm", "mtriple": self.triple, "mcpu": self.mcpu, "mattr": disabled})


def named_cpus() -> dict[str, Cpu]:
    """The CPUs in `cpus.toml`."""
    return {name: Cpu(name, row["triple"]) for name, row in _data()["cpus"].items()}


def resolve(mcpu: str) -> Cpu:
    """The CPU called `mcpu`: `native`, one in `cpus.toml`, or any that LLVM knows on this machine's architecture.

    Raises:
        UsageError: listing close names, if there is none of this name.
    """
    if mcpu == "native":
        return native()
    if mcpu in named_cpus():
        return named_cpus()[mcpu]
    known = _known_to_llvm()
    if mcpu in known:
        return Cpu(mcpu, machine_triple())
    close = difflib.get_close_matches(mcpu, {"native", *named_cpus(), *known}, n=4) or ["native"]
    raise UsageError(
        f"The llvm target knows no CPU '{mcpu}'. Did you mean {' or '.join(close)}? Named CPUs: native, "
        f"{', '.join(named_cpus())}, and what LLVM knows for {machine_triple()}."
    )


@functools.cache
def native() -> Cpu:
    """This machine's CPU, less the features its hypervisor hides."""
    from tvm.target import codegen

    from graphopt.artifact.host import missing

    cpu = Cpu(str(codegen.llvm_get_system_cpu()), machine_triple())
    return dataclasses.replace(cpu, without=tuple(missing(cpu.features)))


def machine_triple() -> str:
    """LLVM's triple of this machine, without the vendor that TVM's wheel has in its default."""
    system = {"Darwin": "apple-darwin"}.get(platform.system(), "linux-gnu")
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return f"{machine}-{system}"


def _known_to_llvm() -> set[str]:
    from tvm.target import Target, codegen

    return set(map(str, codegen.llvm_get_cpu_archlist(Target({"kind": "llvm", "mtriple": machine_triple()}))))


@functools.cache
def _data() -> dict[str, Any]:
    return tomllib.loads(resources.files("graphopt.targets.llvm").joinpath("cpus.toml").read_text())
