"""What tests of passes need: small graphs from text, equivalence through onnxruntime, golden text.

::

    def test_folds_conv_bn():
        before = from_text(
            '''
            <ir_version: 8, opset_import: ["": 17]>
            g (float[1,1,4,4] x, float[2,1,3,3] w) => (float[1,2,2,2] y) { y = Conv(x, w) }
            ''',
            w=np.ones((2, 1, 3, 3), np.float32),
        )
        after, report = apply(MyPass(), before)
        assert_equivalent(before, after, rtol=1e-5)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.base import Context, Pass, Report
from graphopt.data.random import random_feeds
from graphopt.graph import normalise
from graphopt.graph.listing import listing

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

__all__ = ["apply", "assert_equivalent", "assert_golden", "from_text", "listing", "op_types", "random_feeds"]


def from_text(text: str, **weights: Array) -> ir.Model:
    """A model in normal form from ONNX text; graph inputs named in `weights` become initializers with these arrays."""
    model = ir.from_onnx_text(text)
    inputs = {str(v.name): v for v in model.graph.inputs}
    for name, array in weights.items():
        value = inputs.pop(name)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    model.graph.inputs[:] = inputs.values()
    return normalise(model)


def apply(pass_: Pass, model: ir.Model, context: Context | None = None) -> tuple[ir.Model, Report]:
    """Run `pass_` on a copy of `model` through the pipeline's own driver and checks; the copy and the report."""
    from graphopt.pipeline import run
    from graphopt.pipeline.observers import VerifyStructure

    result = run(model, [pass_], context, [VerifyStructure()])
    return result.model, result.steps[0].report


def assert_equivalent(
    before: ir.Model, after: ir.Model, rtol: float = 1e-5, atol: float = 0.0, feeds: Mapping[str, Array] | None = None
) -> None:
    """Both models give the same outputs in onnxruntime: ``max|a - b| <= atol + rtol * max|b|`` for each output."""
    from graphopt import oracle
    from graphopt.pipeline.verify import worst_error

    feeds = dict(feeds or random_feeds(before))
    expected, got = oracle.run(before, feeds), oracle.run(after, feeds)
    assert list(expected) == list(got), f"outputs changed from {list(expected)} to {list(got)}"
    for name, want in expected.items():
        error, bound = worst_error(want, got[name], rtol, atol)
        assert error <= bound, f"output {name!r} is off by {error:.3g}, allowed {bound:.3g}"


def op_types(model: ir.Model) -> list[str]:
    """Operator types of the main graph in order."""
    return [node.op_type for node in model.graph]


def assert_golden(text: str, path: Path, update: bool) -> None:
    """`text` equals the file at `path`; with `update` (pytest --update-golden) the file is written instead."""
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    assert path.exists(), f"{path} does not exist; run pytest --update-golden and read what it writes"
    assert text == path.read_text(encoding="utf-8"), f"differs from {path}: see pytest --update-golden"
