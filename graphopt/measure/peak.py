"""The most float32 arithmetic this machine does: measured, as clocks and neighbours have a say in it."""

from __future__ import annotations

import functools
import time

import numpy as np

CHAINS = 12
"""Independent sums: two FMA units of latency 4 want 8; with the two operands they fit 16 registers."""
STEPS = 1 << 18
SECONDS = 0.5
"""Of trying: on a busy machine all threads seldom run at once."""


@functools.cache
def peak_gflops(threads: int = 1) -> float:
    """10^9 float32 operations a second (a multiply-add is two) that `threads` threads reach with vectors of this CPU.

    Each thread runs ``sum[i] = sum[i] * a + b`` on 12 vectors in registers; the best of several short runs counts.

    Raises:
        UsageError: so many threads can't be had.
    """
    import tvm

    from graphopt.artifact.runtime import check_threads, limit_threads
    from graphopt.targets.llvm.cpu import native
    from graphopt.targets.llvm.kernels.peak import make

    cpu = native()
    check_threads(threads)
    probe = tvm.compile(tvm.IRModule({"peak": make(cpu.lanes, CHAINS, STEPS, threads)}), cpu.tvm_target())["peak"]
    factors = tvm.runtime.tensor(np.array([0.5, 1.0], np.float32))
    sums = tvm.runtime.tensor(np.zeros((threads, CHAINS * cpu.lanes), np.float32))
    limit_threads(threads)
    probe(factors, sums)
    best, stop = _seconds(probe, factors, sums), time.perf_counter() + SECONDS
    while time.perf_counter() < stop:
        best = min(best, _seconds(probe, factors, sums))
    return 2e-9 * threads * CHAINS * cpu.lanes * STEPS / best


def _seconds(probe: object, *arguments: object) -> float:
    assert callable(probe)
    start = time.perf_counter()
    probe(*arguments)
    return time.perf_counter() - start
