"""CUDA C to machine code, without a GPU: by nvcc, else by NVRTC, else not at all (the GPU's host will)."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

from graphopt.errors import HostError, LoweringError

Route = Literal["nvcc", "nvrtc", "source"]
# -177: variables that TVM's code generator declares and does not use.
_QUIET = ["-diag-suppress", "177"]


@dataclasses.dataclass(frozen=True)
class Binary:
    """What was made of the CUDA C: `cubin` is None when nothing here could compile it. `log` is ptxas's."""

    route: Route
    compiler: str
    cubin: bytes | None
    log: str


def routes() -> dict[Route, str]:
    """The ways to compile on this machine, the best first, with the program or library that would do it."""
    found: dict[Route, str | None] = {"nvcc": _nvcc(), "nvrtc": _nvrtc()}
    return {**{route: by for route, by in found.items() if by is not None}, "source": "the machine with the GPU"}


def compile_source(source: str, arch: str, route: Route | None = None) -> Binary:
    """Compile CUDA C for `arch` by `route` (default: the best there is here).

    Raises:
        LoweringError: the compiler refused the source.
        HostError: it did not come to that.
    """
    route = route or next(iter(routes()))
    if route == "source":
        return Binary(route, routes()[route], None, "")
    return (_by_nvcc if route == "nvcc" else _by_nvrtc)(source, arch, routes()[route])


def _nvcc() -> str | None:
    places = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = (shutil.which("nvcc", path=str(place)) for place in [*places, Path("/usr/local/cuda/bin")])
    return shutil.which("nvcc") or next(filter(None, found), None)


def _by_nvcc(source: str, arch: str, nvcc: str) -> Binary:
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        code, cubin = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
        code.write_text(source)
        options = ["-cubin", f"-arch={arch}", "-std=c++17", "--ptxas-options=-v", *_QUIET]
        command = [nvcc, *options, "-o", cubin.name, code.name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise _refused("nvcc", arch, done.stderr or done.stdout)
        return Binary("nvcc", nvcc, cubin.read_bytes(), done.stderr + done.stdout)


@functools.cache
def _nvrtc() -> str | None:
    """The NVRTC library of the PyPI package nvidia-cuda-nvrtc, when its headers are there as well."""
    for folder in pip_folders():
        if (folder / "include" / "cccl").is_dir():
            return next((str(path) for path in sorted(folder.glob("lib/libnvrtc.so.*"))), None)
    return None


def pip_folders() -> list[Path]:
    """Where PyPI's CUDA packages keep their files, the newest CUDA first."""
    spec = importlib.util.find_spec("nvidia")
    roots = [] if spec is None or spec.submodule_search_locations is None else spec.submodule_search_locations
    return [folder for root in roots for folder in sorted(Path(root).glob("cu*"), reverse=True)]


def _by_nvrtc(source: str, arch: str, library: str) -> Binary:
    """NVRTC's C interface (nvrtc.h); every call returns 0 for success."""
    folder = Path(library).parent
    for builtins in folder.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))  # NVRTC opens it by its bare name
    nvrtc, program = ctypes.CDLL(library), ctypes.c_void_p()
    include = folder.parent / "include"
    options = [f"--gpu-architecture={arch}", "-default-device", "--std=c++17", "--ptxas-options=-v", *_QUIET]
    options += [f"-I{include}", f"-I{include / 'cccl'}"]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    try:
        failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
        log = _text(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if failed:
            raise _refused("NVRTC", arch, log)
        return Binary("nvrtc", library, _text(nvrtc, program, "CUBIN"), log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


def _refused(compiler: str, arch: str, log: str) -> LoweringError | HostError:
    """What the compiler says; where it did not get as far as the source, the machine is at fault."""
    errors = [line.strip() for line in log.splitlines() if "error" in line] or log.strip().splitlines()[-3:]
    kind = HostError if re.search(r"fatal\s*:|No space left|No such file", log) else LoweringError
    return kind(f"{compiler} refused the kernels for {arch}: {' '.join(errors[:3])[:600]}")
