"""The ways a model can go through graphopt, each beside what onnxruntime computes from the model as it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.base import EXACT, Pass, tolerance
from graphopt.data.random import random_feeds
from graphopt.debug.checks import GOOD, Verdict
from graphopt.errors import DataError, GraphoptError, LoweringError, ModelError
from graphopt.testing.fuzz_targets import Way, accelerated, compiled, emulated, integers, same

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]
    Outputs = Mapping[str, Array]

SIZES = ({"N": 2, "H": 6, "W": 10}, {"N": 1, "H": 8, "W": 6})
"""What the open dimensions of random graphs are fed with, one after the other."""
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
    return same("O3", [oracle.run(after, some) for some in feeds], wanted)


WAYS: dict[str, Way] = {
    "O3": _optimised,
    "passes": _passes,
    "llvm": compiled("llvm", "O3", "llvm"),
    "llvm-O0": compiled("llvm-O0", "O0", "llvm"),
    "llvm-alone": compiled("llvm-alone", "O3", "llvm", fallback=False),
    "int8": integers,
    "npu": accelerated,
    "cuda": emulated,
}
"""O3: the float pipeline. passes: each pass alone, with what it declares. llvm: -O3 and compiled, what the target
lacks on onnxruntime; llvm-alone: refused instead. llvm-O0: compiled as it is. int8: quantized and compiled. npu:
quantized, on simulated accelerators. cuda: -O3, and its CUDA C emulated; for small graphs (`--steps 4`), as a large one
takes a minute.
"""
