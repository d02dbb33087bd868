"""The ways a model can go through graphopt, each beside what onnxruntime computes from the model as it was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.base import EXACT, Pass, tolerance
from graphopt.data.random import random_feeds
from graphopt.debug.checks import GOOD, Verdict
from graphopt.errors import DataError, GraphoptError, LoweringError, ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]
    Outputs = Mapping[str, Array]

SIZES = ({"N": 2, "H": 6, "W": 10}, {"N": 1, "H": 8, "W": 6})
"""What the open dimensions of random graphs are fed with, one after the other."""
RTOL = {2: 2e-2, 4: 1e-3, 8: 1e-3}
"""``max|got - want| / max|want|`` that rounding may come to in these nets, by the bytes of a number."""
PASSES = (
    "fold-constants", "eliminate-identity", "eliminate-common-subexpressions", "remove-unused", "fold-batch-norm",
    "equalize-channels", "smooth-quant", "reestimate-batch-norm", "insert-qdq", "quantize-dynamic", "quantize-weights",
    "prune-magnitude", "prune-channels",
)  # fmt: skip


def judge(model: ir.Model, way: str, seed: int = 0) -> Verdict:
    """Good, bad, or nothing to say (bad is None) where onnxruntime doesn't run `model` itself.

    Bad in the way "refused" is a model that the target has no lowering for: no answer, but no wrong one either.
    """
    from graphopt import oracle

    try:
        feeds = [random_feeds(model, seed + k, sizes) for k, sizes in enumerate(SIZES)]
        wanted = [oracle.run(model, some) for some in feeds]
    except (ModelError, DataError) as error:
        return Verdict(None, message=str(error))
    try:
        return WAYS[way](model, feeds, wanted, seed)
    except LoweringError as error:
        return Verdict(True, "refused", str(error))
    except GraphoptError as error:
        return Verdict(True, f"{way}: {type(error).__name__}", str(error))
    except Exception as error:  # whatever it is, it is found
        return Verdict(True, f"{way}: {type(error).__name__}", f"{type(error).__name__}: {error}")


def _passes(model: ir.Model, feeds: Sequence[Outputs], wanted: Sequence[Outputs], seed: int) -> Verdict:
    """Each pass by itself keeps what it declares; those that need data get random ones."""
    from graphopt.base import Context
    from graphopt.data import open_data
    from graphopt.debug.checks import keeps
    from graphopt.pipeline import parse_pipeline, run

    context = Context(open_data(feeds[:1], model), seed)
    for pass_ in parse_pipeline(",".join(PASSES)):
        try:
            result = run(model, [pass_], context)
        except GraphoptError as error:
            return Verdict(True, f"{pass_.name}: {type(error).__name__}", str(error))
        if result.steps[0].changed:
            verdict = keeps(model, _as_exact_as_onnxruntime(pass_, model), feeds[0], wanted[0])(result.model)
            if verdict.bad:
                return verdict
    return GOOD


def _as_exact_as_onnxruntime(pass_: Pass, model: ir.Model) -> Pass:
    """In float16 onnxruntime itself rounds otherwise where a value has one reader less: no pass can be exact."""
    import onnx_ir as ir

    half = any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.inputs)
    if not half or pass_.preserves != EXACT:
        return pass_
    return type("Rounded", (type(pass_),), {"preserves": tolerance(1e-5)})()


def _optimised(model: ir.Model, feeds: Sequence[Outputs], wanted: Sequence[Outputs], seed: int) -> Verdict:
    """-O3, checked by its end alone."""
    from graphopt import oracle
    from graphopt.api import run_opened
    from graphopt.pipeline.presets import preset

    after = run_opened(model, preset("O3"), seed=seed, verify=False).model
    return _same("O3", [oracle.run(after, some) for some in feeds], wanted)


def _compiled(way: str, pipeline: str, target: str, fallback: bool = True) -> Way:
    def compiled(model: ir.Model, feeds: Sequence[Outputs], wanted: Sequence[Outputs], seed: int) -> Verdict:
        from graphopt.api import compile_result, run_opened
        from graphopt.pipeline.presets import preset

        result = run_opened(model, preset(pipeline), seed=seed, verify=False)
        program = compile_result(model, result, target, seed=seed, fallback=fallback, threads=1)
        return _same(way, [program.run(dict(some)) for some in feeds], wanted)

    return compiled


def _integers(model: ir.Model, feeds: Sequence[Outputs], wanted: Sequence[Outputs], seed: int) -> Verdict:
    """Static int8, compiled: near what onnxruntime makes of the same quantized graph.

    Integer and float kernels may round a tie apart, and one step of one scale then goes through the whole net.
    """
    from graphopt import oracle
    from graphopt.api import compile_result, run_opened
    from graphopt.pipeline.presets import preset

    result = run_opened(model, preset("int8"), calibration=feeds[:1], seed=seed, verify=False)
    wanted = [oracle.run(result.model, some) for some in feeds]
    program = compile_result(model, result, "llvm", seed=seed, threads=1)
    return _same("int8", [program.run(dict(some)) for some in feeds], wanted, STEPS_OF_INT8)


STEPS_OF_INT8 = 0.15
"""Of the largest output: what is beyond it is no rounding."""


def _same(way: str, got: Sequence[Outputs], wanted: Sequence[Outputs], rtol: float | None = None) -> Verdict:
    from graphopt.pipeline.verify import worst_error

    for size, given, want in zip(SIZES, got, wanted, strict=True):
        for name, array in want.items():
            result, bytes_ = np.asarray(given[name]), array.dtype.itemsize
            error, bound = worst_error(array, result, rtol or RTOL.get(bytes_, 0.0), 1e-5)
            if error > bound:
                shape = "" if result.shape == array.shape else f", shape {result.shape} and not {array.shape}"
                message = f"{way} moved {name!r} by {error:.3g} where {bound:.3g} is rounding, at {size}{shape}"
                return Verdict(True, f"{way}: numbers", message)
    return GOOD


Way = Callable[["ir.Model", "Sequence[Outputs]", "Sequence[Outputs]", int], Verdict]

WAYS: dict[str, Way] = {
    "O3": _optimised,
    "passes": _passes,
    "llvm": _compiled("llvm", "O3", "llvm"),
    "llvm-O0": _compiled("llvm-O0", "O0", "llvm"),
    "llvm-alone": _compiled("llvm-alone", "O3", "llvm", fallback=False),
    "int8": _integers,
}
"""O3: the float pipeline. passes: each pass alone, with what it declares. llvm: -O3 and compiled, what the target
lacks on onnxruntime; llvm-alone: refused instead. llvm-O0: compiled as it is. int8: quantized and compiled.
"""
