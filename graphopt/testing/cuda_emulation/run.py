"""`emulate`: compile the kernels and the driver for this CPU, and run the artifact behind them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from graphopt.base import Context
from graphopt.errors import ArtifactError
from graphopt.testing.cuda_emulation.build import driver, kernels, settings
from graphopt.testing.cuda_emulation.process import in_process

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

_SOURCE = "kernels.cu"


@overload
def emulate(
    model: ir.Model | str | Path,
    feeds: Feeds,
    *,
    arch: str = ...,
    checks: bool = ...,
    sample: int | None = ...,
    edit: Callable[[str], str] = ...,
) -> dict[str, Array]: ...
@overload
def emulate(
    model: ir.Model | str | Path,
    feeds: Sequence[Feeds],
    *,
    arch: str = ...,
    checks: bool = ...,
    sample: int | None = ...,
    edit: Callable[[str], str] = ...,
) -> list[dict[str, Array]]: ...
def emulate(
    model: ir.Model | str | Path,
    feeds: Feeds | Sequence[Feeds],
    *,
    arch: str = "sm_80",
    checks: bool = True,
    sample: int | None = None,
    edit: Callable[[str], str] = str,
) -> dict[str, Array] | list[dict[str, Array]]:
    """The outputs of `model` on a GPU of `arch` whose kernels run on the CPU.

    `model`: an ONNX model, which is compiled first, or the path of an artifact made for cuda (whose `arch` counts
    then). `feeds`: of one call, or a list of several calls' (the answer is a list then). Without `checks` it is
    faster, and only wrong numbers and deadlocks show; with `sample` so many blocks of each launch are checked, evenly
    spread, the first and the last among them, and the others are not. `edit` gets the CUDA C and gives what is run in
    its place: for tests that a fault is seen.

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
        task = {"driver": str(driver()), "artifact": str(artifact), "feeds": [dict(call) for call in calls]}
        device = settings(edit(source), arch, checks, sample)
        results = in_process("graphopt.testing.cuda_emulation.worker", task, device)
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
    task = {"driver": str(driver()), "kernels": str(kernels(source, checks)), "kernel": kernel}
    task |= {"grid": grid, "block": block, "shared": shared, "arguments": list(arguments)}
    return in_process("graphopt.testing.cuda_emulation.kernel", task, {})


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
