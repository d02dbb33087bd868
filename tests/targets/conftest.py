"""What tests of kernels share."""

import numpy as np
import pytest

from graphopt import oracle
from graphopt.testing import from_text, random_feeds


@pytest.fixture
def check():
    """``check(text, mcpu, left, opset, rtol, feeds, **arrays)``: the model as onnxruntime computes it, on kernels only.

    Operators in `left` stay outside kernels (None: any may).
    """
    return _check


def _left(model, mcpu: str = "native") -> set[str]:
    """The operators of `model` that stay outside kernels."""
    from graphopt.targets.llvm.cpu import resolve
    from graphopt.targets.llvm.plan import plan, turn
    from graphopt.targets.lowering.canonical import canonicalise

    planned = canonicalise(model.clone())
    plan(planned, resolve(mcpu), parallel=False)
    turn(planned, resolve(mcpu), parallel=False)
    return {n.op_type for n in planned.graph if n.domain == ""} - {"Reshape"}


def _check(
    text: str,
    mcpu: str = "native",
    left: set[str] | None = frozenset(),
    opset: int = 17,
    rtol=1e-5,
    feeds=None,
    **arrays,
):
    from graphopt.artifact import assemble
    from graphopt.base import Context
    from graphopt.targets.llvm import Llvm

    model = from_text(f'<ir_version: 9, opset_import: ["": {opset}]>\n{text}', **arrays)
    if left is not None:
        assert _left(model, mcpu) == left
    feeds = random_feeds(model) if feeds is None else feeds
    want = oracle.run(model, feeds)
    program = Llvm(mcpu=mcpu, threads=1).build(model, Context())
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        got = executable.run(feeds)
    for name, expected in want.items():
        assert got[name].shape == expected.shape
        error = np.abs(got[name] - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30)
        assert error <= rtol, f"{name} is off by {error:.2e}"


@pytest.fixture
def on_integers(monkeypatch):
    """On llvm, however small the model: integers are not estimated to be slower."""
    from graphopt.targets.llvm.plan import integer
    from graphopt.targets.llvm.plan.integer import choose

    monkeypatch.setattr(integer, "pays", lambda *_: (True, "int8"))
    for name in ("FINISH", "NARROW", "ACTIVATION", "SPREAD"):
        monkeypatch.setattr(choose, name, 0.0)
