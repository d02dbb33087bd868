"""Do two models compute the same, through onnxruntime?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.base import Context, Pass, Report
from graphopt.data.random import random_feeds

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


def apply(pass_: Pass, model: ir.Model, context: Context | None = None) -> tuple[ir.Model, Report]:
    """Run `pass_` on a copy of `model` through the pipeline's own driver and checks; the copy and the report."""
    from graphopt.pipeline import run
    from graphopt.pipeline.observers import VerifyStructure

    result = run(model, [pass_], context, [VerifyStructure()])
    return result.model, result.steps[0].report


def assert_equivalent(
    before: ir.Model, after: ir.Model, rtol: float = 1e-5, atol: float = 0.0, feeds: Mapping[str, Array] | None = None
) -> None:
    """Both models give the same outputs in onnxruntime: ``max|a - b| <= atol + rtol * max|b|`` for each output.

    NaN and infinity must stand in the same places, shapes and dtypes must be equal. `feeds`: random ones by default.
    """
    from graphopt import oracle
    from graphopt.pipeline.verify import tensors, worst_error

    feeds = dict(feeds or random_feeds(before))
    expected, got = oracle.run(before, feeds), oracle.run(after, feeds)
    assert list(expected) == list(got), f"outputs changed from {list(expected)} to {list(got)}"
    wanted, given = tensors(expected), tensors(got)
    assert list(wanted) == list(given), f"a sequence changed its length: from {list(wanted)} to {list(given)}"
    for name, want in wanted.items():
        error, bound = worst_error(want, given[name], rtol, atol)
        assert error <= bound, f"output {name!r} is off by {error:.3g}, allowed {bound:.3g}"


def assert_preserves(
    pass_: Pass, model: ir.Model, context: Context | None = None, feeds: Mapping[str, Array] | None = None
) -> tuple[ir.Model, Report]:
    """`apply`, and the result keeps what `pass_.preserves` declares, as the pipeline would check it; gives its result.

    `feeds`: random ones by default. A lossy pass must leave finite numbers of the same shape.

    Raises:
        PassError: it does not.
    """
    from graphopt import oracle
    from graphopt.errors import ModelError, PassError
    from graphopt.pipeline.verify import check_preserved

    after, report = apply(pass_, model, context)
    feeds = dict(feeds or random_feeds(model))
    who = f"pass {pass_.name!r}"
    expected = oracle.run(model, feeds)
    try:
        got = oracle.run(after, feeds)
    except ModelError as error:
        raise PassError(f"{who} left a graph that onnxruntime does not run: {error}") from error
    check_preserved(who, pass_.preserves, expected, got)
    return after, report
