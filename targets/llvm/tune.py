"""Kernels chosen by measuring: the best few candidates of each problem, one against the other on this machine.

A problem's candidates are compiled in one module and called in turns. The weights of the others pass through the caches
between two calls of one, as those of other layers do in a model. A candidate's time is the quartile of its runs, as
interruptions only add. One that is far behind drops out early, and another than the first by estimate is taken only
when it is clearly faster, so that noise changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from graphopt.errors import UsageError
from graphopt.progress import track
from graphopt.targets.llvm import tuned
from graphopt.targets.llvm.cpu import Cpu, native
from graphopt.targets.llvm.plan.choice import Algorithm, Candidate, Choice, Problem

MOST = 5  # candidates measured, at most
WORTH = 1.5  # times the best estimate up to which another algorithm is measured
WASTE = 1.15  # and up to which another tile of the same algorithm is
BEHIND = 1.5  # times the fastest at which a candidate drops out
GAIN = 0.97  # of the first one's time below which another is taken
OPEN = 32  # rows that an open number of them is measured with
ROUNDS, SECONDS = 5, 0.15  # of a problem, at least the one and about the other


def tune(problems: Mapping[str, Problem], cpu: Cpu, threads: int) -> dict[str, Choice]:
    """The choice for each problem, from the cache of measurements or measured now.

    Raises:
        UsageError: `cpu` is not the one that this process runs on, or so many threads can't be had.
    """
    check_here(cpu)
    open_ones = {text: problem for text, problem in problems.items() if len(shortlist(problem.candidates)) > 1}
    return {
        text: _choice(text, problem, cpu, threads)
        for text, problem in track(open_ones.items(), "tuning", len(open_ones))
    }


def check_here(cpu: Cpu) -> None:
    """See that what is measured here is true of `cpu`.

    Raises:
        UsageError: it is another CPU than this machine's.
    """
    here = native()
    if (cpu.mcpu, cpu.triple) != (here.mcpu, here.triple):
        raise UsageError(
            f"tuning measures kernels on this machine, a {here.mcpu} ({here.triple}), and the model is compiled for "
            f"{cpu.mcpu} ({cpu.triple}): tune with mcpu=native on the machine that will run it, or leave tuning out."
        )


def shortlist(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best few by estimate: of each algorithm the best tile of each width, which are the ones that differ."""
    best: dict[tuple[Algorithm, int], Candidate] = {}
    first: dict[Algorithm, float] = {}
    for candidate in candidates:
        least = first.setdefault(candidate.algorithm, candidate.cycles)
        if candidate.cycles <= WASTE * least and candidate.cycles <= WORTH * candidates[0].cycles:
            best.setdefault((candidate.algorithm, candidate.tile.cols if candidate.tile else 0), candidate)
    return list(best.values())[:MOST]


def _choice(text: str, problem: Problem, cpu: Cpu, threads: int) -> Choice:
    key, known = tuned.key(text, cpu, threads), {str(c): c for c in shortlist(problem.candidates)}
    times = tuned.read(key, known)
    if times is None:
        times = measure(problem, list(known.values()), cpu, threads)
        tuned.write(key, times)
    return pick(known, times)


def pick(candidates: Mapping[str, Candidate], times: Mapping[str, float]) -> Choice:
    """The fastest, or the first of `candidates` unless that is clearly slower. `times`: microseconds."""
    first = next(iter(candidates))
    best = min(times, key=lambda name: times[name])
    return Choice(candidates[best if times[best] < GAIN * times[first] else first], times)


def measure(problem: Problem, candidates: Sequence[Candidate], cpu: Cpu, threads: int) -> dict[str, float]:
    """The microseconds of each candidate by its text, in interleaved runs."""
    import tvm

    from graphopt.artifact.runtime import check_threads, limit_threads

    functions: dict[str, Any] = {f"k{i}": problem.make(candidate, f"k{i}") for i, candidate in enumerate(candidates)}
    module = tvm.IRModule({name: made.with_attr("global_symbol", name) for name, made in functions.items()})
    library = tvm.compile(module, cpu.tvm_target())
    check_threads(threads)
    limit_threads(threads)
    calls = [
        _call(library[name], made, problem.constants(candidate))
        for candidate, (name, made) in zip(candidates, functions.items(), strict=True)
    ]
    times: list[list[float]] = [[] for _ in calls]
    running = list(range(len(calls)))
    for call in calls:
        call()
    stop, rounds = time.perf_counter() + SECONDS, 0
    while rounds < ROUNDS or (time.perf_counter() < stop and len(running) > 1):
        for index in running:
            times[index].append(calls[index]())
        rounds += 1
        if rounds >= ROUNDS:
            running = [i for i in running if _quartile(times[i]) <= BEHIND * min(map(_quartile, times))]
    return {str(c): _quartile(t) * 1e6 for c, t in zip(candidates, times, strict=True)}


def _quartile(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 4]


def _call(kernel: Callable[..., Any], made: Any, constants: Mapping[int, np.ndarray[Any, Any]]) -> Callable[[], float]:
    """Calls `kernel`, compiled from `made`, on `constants` and random tensors; gives the seconds it took.

    An open batch is 1; of other open dimensions (rows of a product) the last is `OPEN`, the rest 1.
    """
    import tvm

    rng = np.random.default_rng(0)
    buffers: list[Any] = [parameter.ty for parameter in made.params]
    symbols: list[Any] = [d for d in buffers[0].shape if isinstance(d, tirx.Var)]
    sizes = {symbol: 1 if symbol.name == "n" or symbol is not symbols[-1] else OPEN for symbol in symbols}
    shapes = [[int(d) if isinstance(d, tirx.IntImm) else sizes[d] for d in buffer.shape] for buffer in buffers]
    tensors = [
        tvm.runtime.tensor(
            constants[i] if i in constants else rng.standard_normal(shape, np.float32).astype(str(buffer.dtype))
        )
        for i, (shape, buffer) in enumerate(zip(shapes, buffers, strict=True))
    ]

    def call() -> float:
        start = time.perf_counter()
        kernel(*tensors)
        return time.perf_counter() - start

    return call
