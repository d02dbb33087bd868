"""The fuzzer's ways through the targets: compiled, quantized, on the simulated accelerator, as CUDA C."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.debug.checks import GOOD, Verdict

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]
    Outputs = Mapping[str, Array]

Way = Callable[["ir.Model", "Sequence[Outputs]", "Sequence[Outputs]", int], Verdict]
RTOL = {2: 2e-2, 4: 1e-3, 8: 1e-3}
"""``max|got - want| / max|want|`` that rounding may come to in these nets, by the bytes of a number."""
STEPS_OF_INT8 = 0.15
"""The same where integer and float kernels may round a tie apart: one step of one scale then goes through the net."""
MACHINES = ("edge", "gemmini-16", "mobile-4k", "tpuv1", "edge-dram")


def compiled(way: str, pipeline: str, target: str, fallback: bool = True) -> Way:
    """Through `pipeline`, then compiled for `target`; what it lacks runs on onnxruntime, if `fallback`."""

    def run(model: ir.Model, feeds: Sequence[Outputs], wanted: Sequence[Outputs], seed: int) -> Verdict:
        from graphopt.api import compile_result, run_opened
        from graphopt.pipeline.presets import preset

        result = run_opened(model, preset(pipeline), seed=seed, verify=False)
        program = compile_result(model, result, target, seed=seed, fallback=fallback, threads=1)
        return same(way, [program.run(dict(some)) for some in feeds], wanted)

    return run


def integers(model: ir.Model, feeds: Sequence[Outputs], wanted: Sequence[Outputs], seed: int) -> Verdict:
    """Static int8, compiled: near what onnxruntime makes of the same quantized graph.

    Where the report says that a part runs as float32 throughout (docs/integer.md), an output may be near that instead:
    values beyond the calibrated range are not cut off then.
    """
    from graphopt import oracle
    from graphopt.api import compile_result, run_opened
    from graphopt.pipeline.presets import preset
    from graphopt.targets.integer.signs import make_unsigned
    from graphopt.targets.llvm.plan.integer.loosen import loosen

    result = run_opened(model, preset("int8"), calibration=feeds[:1], seed=seed, verify=False)
    program = compile_result(model, result, "llvm", seed=seed, threads=1)
    got = [program.run(dict(some)) for some in feeds]
    verdict = same("int8", got, [oracle.run(result.model, some) for some in feeds], STEPS_OF_INT8)
    if not verdict.bad or "float32 throughout" not in str(program.report):
        return verdict
    loose = result.model.clone()
    make_unsigned(loose)
    loosen(loose)
    for some, given in zip(feeds, got, strict=True):
        pairs, floats = oracle.run(result.model, some), oracle.run(loose, some)
        for name, output in given.items():
            either = [same("int8", [{name: output}], [{name: w[name]}], STEPS_OF_INT8) for w in (pairs, floats)]
            if all(verdict.bad for verdict in either):
                return either[0]
    return GOOD


def accelerated(model: ir.Model, feeds: Sequence[Outputs], wanted: Sequence[Outputs], seed: int) -> Verdict:
    """Static int8 on a simulated accelerator, one for each seed, beside onnxruntime on the same quantized graph.

    All that can goes there, as the CPU beside it is said to be slow. Sizes are bound to those of the first feeds.
    """
    from graphopt import oracle
    from graphopt.api import compile_result, run_opened
    from graphopt.graph import bind_dims
    from graphopt.pipeline.presets import preset

    model, feeds = model.clone(), feeds[:1]
    shapes = {str(v.name): v.shape for v in model.graph.inputs}
    sizes = {str(d): n for name, a in feeds[0].items() for d, n in zip(shapes[name] or (), a.shape, strict=True)}
    bind_dims(model, {name: size for name, size in sizes.items() if not name.isdecimal()})
    result = run_opened(model, preset("int8"), calibration=feeds, seed=seed, verify=False)
    target = f"npu{{machine={MACHINES[seed % len(MACHINES)]},cpu_gmacs=0.001}}"
    program = compile_result(model, result, target, seed=seed, threads=1)
    quantized = [oracle.run(result.model, some) for some in feeds]
    return same("npu", [program.run(dict(some)) for some in feeds], quantized, STEPS_OF_INT8)


def emulated(model: ir.Model, feeds: Sequence[Outputs], wanted: Sequence[Outputs], seed: int) -> Verdict:
    """-O3, and the CUDA C that comes of it run thread by thread on the CPU, every access to memory checked."""
    from graphopt.api import run_opened
    from graphopt.pipeline.presets import preset
    from graphopt.testing.cuda_emulation import EmulationError, emulate

    after = run_opened(model, preset("O3"), seed=seed, verify=False).model
    try:
        return same("cuda", emulate(after, feeds, arch="sm_80"), wanted)
    except EmulationError as error:
        return Verdict(True, "cuda: EmulationError", str(error))


def same(way: str, got: Sequence[Outputs], wanted: Sequence[Outputs], rtol: float | None = None) -> Verdict:
    """Are the outputs those that are wanted, up to rounding?"""
    from graphopt.pipeline.verify import worst_error

    for at, (given, want) in enumerate(zip(got, wanted, strict=True)):
        for name, array in want.items():
            result, bytes_ = np.asarray(given[name]), array.dtype.itemsize
            error, bound = worst_error(array, result, rtol or RTOL.get(bytes_, 0.0), 1e-5)
            if error > bound:
                shape = "" if result.shape == array.shape else f", shape {result.shape} and not {array.shape}"
                message = f"{way} moved {name!r} by {error:.3g} where {bound:.3g} is rounding, at size {at}{shape}"
                return Verdict(True, f"{way}: numbers", message)
    return GOOD
