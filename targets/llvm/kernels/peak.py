"""Nothing but multiply-adds in registers: how fast the arithmetic of a CPU is when no memory is in the way."""

from __future__ import annotations

from tvm import tirx

from graphopt.targets.llvm.kernels.emit import function, load, loop, registers, splat, store


def make(lanes: int, chains: int, steps: int, threads: int, name: str = "peak") -> tirx.PrimFunc:
    """``(factors (2,), sums (threads, chains * lanes))``: `steps` times ``sums = sums * factors[0] + factors[1]``.

    One row a thread; `chains` vectors of `lanes` each stay in registers.
    """
    with function(name) as (f, made):
        factors, sums = f.argument("factors", [2]), f.argument("sums", [threads, chains * lanes])
        with loop(threads, parallel=threads > 1) as thread:
            held = registers(chains * lanes)
            for i in range(chains):
                store(held, load(sums, [thread, i * lanes], lanes), [i * lanes], lanes)
            with loop(steps):
                a, b = (splat(load(factors, [j], 1), lanes) for j in range(2))
                for i in range(chains):
                    store(held, load(held, [i * lanes], lanes) * a + b, [i * lanes], lanes)
            for i in range(chains):
                store(sums, load(held, [i * lanes], lanes), [thread, i * lanes], lanes)
    return made[0]
