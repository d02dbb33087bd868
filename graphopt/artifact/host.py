"""Whether this machine can execute a library: its system, its architecture and its instruction sets."""

from __future__ import annotations

import functools
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from graphopt.artifact.manifest import Manifest, installed
from graphopt.errors import ArtifactError

# Instruction sets that kernels use, by LLVM's names; and how Linux calls those it calls differently.
_SETS = frozenset(
    """
    sse3 ssse3 sse4.1 sse4.2 popcnt lzcnt avx avx2 fma f16c bmi bmi2 gfni vaes vpclmulqdq avxvnni avxvnniint8 avxifma
    avx512f avx512cd avx512bw avx512dq avx512vl avx512vbmi avx512vbmi2 avx512ifma avx512vnni avx512bf16 avx512fp16
    avx512bitalg avx512vpopcntdq amx-tile amx-int8 amx-bf16 amx-fp16 neon dotprod fullfp16 bf16 i8mm sve sve2
    """.split()  # noqa: SIM905 (one name a line would hide the families)
)
_LINUX_NAME = {
    "sse3": "pni",
    "lzcnt": "abm",
    "bmi": "bmi1",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "avxifma": "avx_ifma",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "neon": "asimd",
    "dotprod": "asimddp",
    "fullfp16": "asimdhp",
}
_ELF_MACHINE = {62: "x86_64", 183: "aarch64", 243: "riscv64"}


def machine_of(library: bytes) -> str:
    """The architecture a shared library was compiled for, from its ELF header (elsewhere: this machine's)."""
    if library[:4] != b"\x7fELF":
        return platform.machine()
    (code,) = struct.unpack_from("<H", library, 18)
    return _ELF_MACHINE.get(code, f"elf{code}")


def instruction_sets(features: Iterable[str]) -> list[str]:
    """Those of LLVM's `features` that a kernel may use and a host may lack, sorted."""
    return sorted(_SETS.intersection(features))


@functools.cache
def host_flags() -> frozenset[str] | None:
    """The CPU's flags as Linux names them; None where they can't be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    found = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(found, "").split()) or None


def missing(features: Iterable[str]) -> list[str]:
    """Those of LLVM's `features` that this CPU lacks; none where its flags can't be read."""
    flags = host_flags()
    return [] if flags is None else [f for f in instruction_sets(features) if _linux_name(f) not in flags]


def _linux_name(feature: str) -> str:
    return _LINUX_NAME.get(feature, feature.replace(".", "_").replace("-", "_"))


def check_host(manifest: Manifest, artifact: str) -> None:
    """See that this machine and this TVM can execute the artifact's library.

    Raises:
        ArtifactError: it was built for another system, architecture, CPU or TVM.
    """
    here, machine = sys.platform, platform.machine()
    if (manifest.system, manifest.machine) != (here, machine):
        raise ArtifactError(
            f"{artifact} was compiled for {manifest.system} on {manifest.machine} and this is {here} on {machine}: "
            "compile the model for this machine."
        )
    if lacking := missing(manifest.cpu_features):
        raise ArtifactError(
            f"{artifact} was compiled for a CPU with {', '.join(lacking)}, which this one lacks "
            f"(target {manifest.target}): compile the model for this CPU."
        )
    ours = installed()
    if (manifest.versions.tvm, manifest.versions.tvm_ffi) != (ours.tvm, ours.tvm_ffi):
        raise ArtifactError(
            f"{artifact} was built with apache-tvm {manifest.versions.tvm} and apache-tvm-ffi "
            f"{manifest.versions.tvm_ffi}; installed are {ours.tvm} and {ours.tvm_ffi}. "
            "Compile the model again, or install those versions."
        )
