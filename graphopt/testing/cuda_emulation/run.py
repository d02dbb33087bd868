"""`emulate`: compile the kernels and the driver for this CPU, and run the artifact behind them."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from graphopt.base import Context
from graphopt.errors import ArtifactError, GraphoptError, LoweringError
from graphopt.testing.cuda_emulation.translate import to_cpp

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

_NATIVE = Path(__file__).parent / "native"
_CHECKED = ["-DCHECKED", "-fsanitize=bounds", "-fsanitize-undefined-trap-on-error"]
_SOURCE = "kernels.cu"


class EmulationError(LoweringError):
    """A kernel did on the emulated device what CUDA forbids, or can't be emulated."""


@overload
def emulate(
    model: ir.Model | str | Path,
    feeds: Feeds,
    *,
    arch: str = ...,
    checks: bool = ...,
    edit: Callable[[str], str] = ...,
) -> dict[str, Array]: ...
@overload
def emulate(
    model: ir.Model | str | Path,
    feeds: Sequence[Feeds],
    *,
    arch: str = ...,
    checks: bool = ...,
    edit: Callable[[str], str] = ...,
) -> list[dict[str, Array]]: ...
def emulate(
    model: ir.Model | str | Path,
    feeds: Feeds | Sequence[Feeds],
    *,
    arch: str = "sm_80",
    checks: bool = True,
    edit: Callable[[str], str] = str,
) -> dict[str, Array] | list[dict[str, Array]]:
    """The outputs of `model` on a GPU of `arch` whose kernels run on the CPU.

    `model`: an ONNX model, which is compiled first, or the path of an artifact made for cuda (whose `arch` counts
    then). `feeds`: of one call, or a list of several calls' (the answer is a list then). Without `checks` it is
    faster, and only wrong numbers and deadlocks show. `edit` gets the CUDA C and gives what is run in its place: for
    tests that a fault is seen.

    Raises:
        LoweringError: the model can't be compiled for the GPU.
        EmulationError: a kernel did what CUDA forbids, or the host's compiler refused it.
        ArtifactError, DataError: as when an artifact is loaded and run.
    """
    calls = [feeds] if isinstance(feeds, Mapping) else feeds
    with tempfile.TemporaryDirectory(prefix="graphopt-") as name:
        folder = Path(name)
        artifact = Path(model) if isinstance(model, (str, Path)) else _compiled(model, arch, folder)
        source, arch = _source(artifact)
        settings = {"GRAPHOPT_EMULATED_KERNELS": str(_kernels(edit(source), checks)), "GRAPHOPT_EMULATED_ARCH": arch}
        task = {"driver": str(_driver()), "artifact": str(artifact), "feeds": [dict(call) for call in calls]}
        results = _in_process("graphopt.testing.cuda_emulation.worker", task, settings)
    return results[0] if isinstance(feeds, Mapping) else results


def run_kernel(
    source: str,
    kernel: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    arguments: Sequence[Array | np.generic],
    *,
    shared: int = 0,
    checks: bool = True,
) -> list[Array]:
    """Launch `kernel`, declared ``extern "C" __global__``, once; the array arguments as it leaves them.

    `arguments`: arrays become pointers to device memory of that very size, numpy scalars are passed by value.
    `shared`: bytes of dynamic shared memory.

    Raises:
        EmulationError: the kernel did what CUDA forbids, or the host's compiler refused it.
    """
    task = {"driver": str(_driver()), "kernels": str(_kernels(source, checks)), "kernel": kernel}
    task |= {"grid": grid, "block": block, "shared": shared, "arguments": list(arguments)}
    return _in_process("graphopt.testing.cuda_emulation.kernel", task, {})


def _compiled(model: ir.Model, arch: str, folder: Path) -> Path:
    from graphopt import artifact
    from graphopt.targets.cuda import Cuda

    program = Cuda(arch=arch, compiler="source").build(model, Context())
    target = f"cuda{{arch={arch}}}"
    return artifact.write(folder / "model.gopt", program, target=target, before=model, after=model, report={})


def _source(path: Path) -> tuple[str, str]:
    """The CUDA C of an artifact, and the architecture it is for, the oldest of several.

    Raises:
        ArtifactError: it is no artifact for cuda.
    """
    from graphopt.artifact import read

    artifact = read(path)
    if artifact.manifest.device != "cuda" or _SOURCE not in artifact.files:
        raise ArtifactError(f"{path} holds no CUDA kernels to emulate: it was made for {artifact.manifest.target}.")
    archs = artifact.report["target"]["arch"]
    return artifact.read_file(_SOURCE).decode(), str(archs if isinstance(archs, str) else archs[0])


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


@functools.cache
def _driver() -> Path:
    """A folder with ``libcuda.so.1`` and ``libcudart.so.13`` of the emulated device."""
    folder = Path(_scratch().name)
    (folder / "versions").write_text("libcudart.so.13 { global: *; };")
    common = [_compiler("c"), "-shared", "-fPIC", "-w", str(_NATIVE / "driver.c")]
    versions = f"-Wl,--version-script={folder / 'versions'}"
    _compile([*common, "-DDRIVER", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1"), "-ldl"])
    _compile([*common, versions, "-Wl,-soname,libcudart.so.13", "-o", str(folder / "libcudart.so.13")])
    return folder


@functools.lru_cache(maxsize=32)
def _kernels(source: str, checks: bool) -> Path:
    """The library that CUDA C becomes for the CPU.

    Raises:
        EmulationError: the compiler refused it: `native/` lacks something that the source uses.
    """
    folder = Path(tempfile.mkdtemp(dir=_scratch().name))
    code, library = folder / "kernels.cpp", folder / "kernels.so"
    code.write_text(to_cpp(source))
    options = ["-O1", "-std=c++17", "-shared", "-fPIC", "-w", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"]
    options += ["-march=native"] * (os.uname().machine == "x86_64") + _CHECKED * checks
    _compile([_compiler("c++"), *options, f"-I{_NATIVE}", str(code), "-o", str(library)])
    return library


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-3:]
        raise EmulationError(f"{command[0]} refused the kernels for emulation: {' '.join(errors[:3])[:600]}")


def _in_process(module: str, task: Mapping[str, Any], settings: Mapping[str, str]) -> Any:
    """The answer of a module's `main` to `task`, in a process of its own, which a kernel's fault may end.

    Raises:
        EmulationError: what the emulated device said, or how the process ended.
        GraphoptError: what graphopt itself raised there.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        place = Path(folder) / "task.pickle"
        place.write_bytes(pickle.dumps(dict(task)))
        command, environment = [sys.executable, "-m", module, str(place)], {**os.environ, **settings}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode == 0:
            answer = pickle.loads(place.read_bytes())
            if isinstance(answer, GraphoptError):
                raise answer
            return answer
    lines = done.stderr.strip().splitlines() or ["nothing was said"]
    said = next((line.removeprefix("emulation: ") for line in lines if line.startswith("emulation: ")), lines[-1])
    if done.returncode < 0:
        index = ": an index outside of a thread's own array" * (done.returncode == -signal.SIGILL)
        said = f"the kernels ended in {signal.Signals(-done.returncode).name}{index}"
    raise EmulationError(f"{said}.")
