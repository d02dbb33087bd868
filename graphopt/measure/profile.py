"""Where the time of a run goes: milliseconds, arithmetic and source nodes of each kernel of an artifact."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.artifact import Executable

BUILTIN = "vm.builtin."
RUNTIME = "(memory and shapes)"
"""The row of all functions of TVM's virtual machine itself."""


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """One row. `ms` is the sum over the `calls` of one run, its median over runs.

    `gflops`: 2e-9 * multiply-accumulates of the nodes / second, None where there are none. Winograd's are those of the
    convolution it computes, so that it may exceed the peak. `share`: of the sum over rows. `nodes`: of the source
    model.
    """

    name: str
    calls: int
    ms: float
    share: float
    gflops: float | None
    nodes: list[str]


@dataclasses.dataclass(frozen=True)
class Profile:
    """`kernels` with the slowest first; `total_ms` a whole run without the profiler, `peak_gflops` see `peak`."""

    kernels: list[KernelTime]
    total_ms: float
    threads: int
    peak_gflops: float


def profile_artifact(
    path: str | Path, *, threads: int = 1, feeds: str | Path | None = None, seconds: float = 3.0
) -> Profile:
    """Profile the artifact at `path`, inputs as `bench_artifact` takes them.

    Raises:
        ArtifactError: the artifact can't be read or run here.
        DataError: the inputs don't fit.
        UsageError: so many threads can't be had, or it was not compiled for a CPU.
    """
    from graphopt import artifact
    from graphopt.measure.artifact import artifact_feeds
    from graphopt.measure.peak import peak_gflops

    with artifact.load(path, threads=threads) as program:
        arrays = artifact_feeds(program.graph("before"), feeds)
        kernels, total_ms = profile(program, arrays, seconds=seconds)
    return Profile(kernels, total_ms, threads, peak_gflops(threads))


def profile(program: Executable, feeds: Mapping[str, Any], *, seconds: float = 3.0) -> tuple[list[KernelTime], float]:
    """The rows of `program` on `feeds`, the slowest first, and the median milliseconds of a run without the profiler.

    Runs with and without the profiler take turns for `seconds`, at least five of each.

    Raises:
        DataError: the inputs don't fit.
        UsageError: the artifact was not compiled for a CPU: what is called returns before it is done.
    """
    known = kernels(program.report)
    runs, whole = watch(program, feeds, seconds)
    rows = [_row(name, runs, known.get(name, {})) for name in runs[0].seconds]
    total = sum(row.ms for row in rows) or 1.0
    rows = [dataclasses.replace(row, share=row.ms / total) for row in rows]
    return sorted(rows, key=lambda row: -row.ms), median(whole)


def kernels(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an artifact's report says of each kernel, by name; of an NPU's artifact, those that run on the CPU."""
    target = report["target"]
    found = target.get("kernels") or target.get("cpu", {}).get("kernels", {})
    if isinstance(found, Mapping):
        return found  # pyright: ignore[reportUnknownVariableType]
    return {
        str(kernel.get("function") or kernel["name"]): kernel for kernel in found
    }  # CUDA's, as the compiler lists them


def watch(
    program: Executable, feeds: Mapping[str, Any], seconds: float, also: Callable[[], object] | None = None
) -> tuple[list[Run], list[float]]:
    """What `program` called in each of at least five runs, and the milliseconds of as many without the profiler.

    They take turns, with calls of `also` between. Raises as `profile` does.
    """
    if program.manifest.device != "cpu":
        raise UsageError(f"{program.name} runs on {program.manifest.device}: kernels are timed on the CPU only.")
    runs: list[Run] = []
    whole: list[float] = []
    program.run(feeds)
    stop = time.perf_counter() + seconds
    while len(runs) < 5 or time.perf_counter() < stop:
        start = time.perf_counter()
        program.run(feeds)
        whole.append((time.perf_counter() - start) * 1e3)
        runs.append(Run())
        program.instrument(runs[-1].around)
        try:
            program.run(feeds)
        finally:
            program.instrument(None)
        if also is not None:
            also()
    return runs, whole


class Run:
    """What one run called, and the seconds of each call. Functions nest nowhere but in Relax functions, which have no
    rows of their own.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.elements: defaultdict[str, int] = defaultdict(int)
        self._start = 0.0

    def around(self, function: Any, name: str, before: bool, result: Any, *arguments: Any) -> None:
        """TVM's instrument."""
        if not before:
            elapsed = time.perf_counter() - self._start
            row = RUNTIME if name.startswith(BUILTIN) else name
            self.seconds[row].append(elapsed)
            self.elements[row] += math.prod(getattr(arguments[-1], "shape", ())) if arguments else 0
        else:
            self._start = time.perf_counter()


def _row(name: str, runs: list[Run], known: Mapping[str, Any]) -> KernelTime:
    seconds = median([sum(run.seconds[name]) for run in runs])
    macs = runs[0].elements[name] * known.get("macs_per_element", 0.0)
    gflops = 2e-9 * macs / seconds if macs and seconds else None
    return KernelTime(name, len(runs[0].seconds[name]), seconds * 1e3, 0.0, gflops, list(known.get("nodes", [])))


def median(values: list[float]) -> float:
    """The middle one of `values`; of an even number the upper."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
