"""Which instructions the kernels have: read from the machine code where a disassembler is at hand, else from CUDA C."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from graphopt.errors import LoweringError
from graphopt.targets.cuda.account.roofline import Work
from graphopt.targets.cuda.machine_code.compiler import Binary, pip_folders

_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+)")
_OPCODE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(\w+)")
_KERNEL = re.compile(r'^extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\([^()]*\) \{', re.MULTILINE)
_PRODUCT, _COPY = re.compile(r"\bmma_sync\(|\bmma\.sync"), re.compile(r"\bptx_cp_async_\w+\(")
MATRIX = re.compile(r"[HIDBQ]MMA|HGMMA|IGMMA|QGMMA|UTC\w*MMA")
"""Products on tensor cores: of fragments (MMA), of a warp group (GMMA), of sm_100 (UTCMMA)."""
COPY = re.compile(r"LDGSTS")
"""Copies from global to shared memory that no thread waits for."""


@dataclasses.dataclass(frozen=True)
class Instructions:
    """Of one kernel, as they stand in its code, however often they run: on tensor cores, asynchronous copies."""

    matrix: int
    copies: int


def instructions(binary: Binary, source: str) -> tuple[dict[str, Instructions], str]:
    """Those of each kernel, and where they were counted.

    Raises:
        LoweringError: the disassembler refuses the machine code.
    """
    program = nvdisasm()
    if binary.cubin is None or program is None:
        missing = "a disassembler" if binary.cubin is not None else "machine code"
        return _in_source(source), f"the CUDA C, for want of {missing}"
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        place = Path(folder) / "kernels.cubin"
        place.write_bytes(binary.cubin)
        done = subprocess.run([program, "-c", str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoweringError(f"{program} refused the kernels: {done.stderr.strip()[:400]}.")
    return parse(done.stdout), "the machine code, by nvdisasm"


@functools.cache
def nvdisasm() -> str | None:
    """CUDA's disassembler: the toolkit's, or that of the PyPI package nvidia-cuda-nvdisasm."""
    homes = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [*homes, Path("/usr/local/cuda/bin"), *(folder / "bin" for folder in pip_folders())]
    found = (shutil.which("nvdisasm", path=str(place)) for place in places)
    return shutil.which("nvdisasm") or next(filter(None, found), None)


def parse(listing: str) -> dict[str, Instructions]:
    """Of the kernels of a listing of ``nvdisasm -c``."""
    found: dict[str, list[int]] = {}
    counts = [0, 0]
    for line in listing.splitlines():
        if section := _SECTION.match(line):
            counts = found.setdefault(section[1], [0, 0])
        elif opcode := _OPCODE.match(line):
            counts[0] += bool(MATRIX.fullmatch(opcode[1]))
            counts[1] += bool(COPY.fullmatch(opcode[1]))
    return {name: Instructions(*pair) for name, pair in found.items()}


def _in_source(source: str) -> dict[str, Instructions]:
    starts = [*_KERNEL.finditer(source)]
    ends = [*(match.start() for match in starts[1:]), len(source)]
    bodies = {match[1]: source[match.end() : end] for match, end in zip(starts, ends, strict=True)}
    return {name: Instructions(len(_PRODUCT.findall(body)), len(_COPY.findall(body))) for name, body in bodies.items()}


def tensor_core_share(works: Sequence[Work], found: dict[str, Instructions]) -> float | None:
    """Of all multiply-adds of the model, those of functions whose kernels have tensor-core instructions.

    A schedule that uses them does every product of its function on them. None where the model has no multiply-adds.
    """
    total = sum(work.calls * work.macs for work in works)
    using = {re.sub(r"_kernel(_\d+)?$", "", kernel) for kernel, has in found.items() if has.matrix}
    return sum(work.calls * work.macs for work in works if work.function in using) / total if total else None
