"""The host's compiler makes libraries of the emulated device's driver and of a model's CUDA C."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from graphopt.errors import LoweringError
from graphopt.testing.cuda_emulation.translate import to_cpp

_NATIVE = Path(__file__).parent / "native"
_OPTIONS = [
    "-O1",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-w",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
]
_CHECKED = ["-DCHECKED", "-fsanitize=bounds", "-fsanitize-undefined-trap-on-error"]


class EmulationError(LoweringError):
    """A kernel did on the emulated device what CUDA forbids, or can't be emulated."""


def settings(source: str, arch: str, checks: bool, sample: int | None) -> dict[str, str]:
    """The environment that tells the driver which kernels it runs, and on which device.

    Raises:
        EmulationError: the compiler refused them: `native/` lacks something that the source uses.
    """
    libraries = [kernels(source, True), kernels(source, False)] if sample is not None else [kernels(source, checks)]
    found = {"GRAPHOPT_EMULATED_KERNELS": ":".join(map(str, libraries)), "GRAPHOPT_EMULATED_ARCH": arch}
    return found if sample is None else {**found, "GRAPHOPT_EMULATED_SAMPLE": str(sample)}


@functools.cache
def driver() -> Path:
    """A folder with ``libcuda.so.1`` and ``libcudart.so.13`` of the emulated device."""
    folder = Path(_scratch().name)
    (folder / "versions").write_text("libcudart.so.13 { global: *; };")
    common = [_compiler("c"), "-shared", "-fPIC", "-w", str(_NATIVE / "driver.c")]
    versions = f"-Wl,--version-script={folder / 'versions'}"
    _compile([*common, "-DDRIVER", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1"), "-ldl"])
    _compile([*common, versions, "-Wl,-soname,libcudart.so.13", "-o", str(folder / "libcudart.so.13")])
    return folder


@functools.lru_cache(maxsize=32)
def kernels(source: str, checks: bool) -> Path:
    """The library that CUDA C becomes for the CPU.

    Raises:
        EmulationError: as `settings`.
    """
    folder = Path(tempfile.mkdtemp(dir=_scratch().name))
    code, library = folder / "kernels.cpp", folder / "kernels.so"
    code.write_text(to_cpp(source))
    options = [*_OPTIONS, *["-march=native"] * (os.uname().machine == "x86_64"), *_CHECKED * checks]
    _compile([_compiler("c++"), *options, f"-I{_NATIVE}", str(code), "-o", str(library)])
    return library


@functools.cache
def _compiler(language: str) -> str:
    """The C or C++ compiler: ``CC`` or ``CXX`` where set."""
    named = os.environ.get("CXX" if language == "c++" else "CC")
    found = named or next(filter(shutil.which, ("g++", "clang++") if language == "c++" else ("cc", "gcc")), None)
    if found is None:
        raise EmulationError("emulating CUDA kernels needs a C and a C++ compiler: install gcc and g++.")
    return found


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for what is compiled, which goes with the process."""
    return tempfile.TemporaryDirectory(prefix="graphopt-")


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-3:]
        raise EmulationError(f"{command[0]} refused the kernels for emulation: {' '.join(errors[:3])[:600]}")
