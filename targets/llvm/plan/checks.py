"""Checks of indices and divisors (`targets/lowering/guards.py`) onto kernels that refuse the run."""

from __future__ import annotations

import onnx_ir as ir
from tvm import tirx

from graphopt.targets.llvm.kernels import checks
from graphopt.targets.llvm.kernels.checks import InRange, NotZero, Size
from graphopt.targets.llvm.plan.kernels import call
from graphopt.targets.llvm.plan.layout import replace
from graphopt.targets.lowering.support import IN_RANGE, NOT_ZERO


def check(model: ir.Model) -> dict[str, tirx.PrimFunc]:
    """Replace the checks of the main graph of `model`, in place; returns the kernels by symbol.

    The importer computes both branches of an If, so a check in one may not refuse the run: it stays.
    """
    graph = model.graph
    made: dict[InRange | NotZero, str] = {}
    for node in list(graph):
        problem = _problem(node) if (node.domain, node.op_type) in (IN_RANGE, NOT_ZERO) else None
        x = node.inputs[0] if node.inputs else None
        if problem is None or x is None or x.shape is None:
            continue
        symbol = made.setdefault(problem, f"check_{len(made)}")
        called = call(symbol, [v for v in node.inputs if v is not None], list(x.shape), node)
        graph.insert_before(node, called)
        replace(node.outputs[0], called.outputs[0])
        graph.remove(node, safe=True)
    return {symbol: _make(problem, symbol) for problem, symbol in made.items()}


def _make(problem: InRange | NotZero, symbol: str) -> tirx.PrimFunc:
    return checks.in_range(problem, symbol) if isinstance(problem, InRange) else checks.not_zero(problem, symbol)


def _problem(node: ir.Node) -> InRange | NotZero | None:
    x, message = node.inputs[0], str(node.attributes.get_string("message"))
    if x is None or x.dtype is None:
        return None
    dims, dtype = _dims(x, "i"), x.dtype.numpy().name
    if (node.domain, node.op_type) == NOT_ZERO:
        return NotZero(dims, dtype, message)
    data = node.inputs[1] if len(node.inputs) > 1 else None
    return InRange(
        dims,
        dtype,
        tuple(node.attributes.get_ints("sizes", ())),
        str(node.attributes.get_string("kind")),
        message,
        () if data is None else _dims(data, "x"),
        "float32" if data is None or data.dtype is None else data.dtype.numpy().name,
        tuple(node.attributes.get_ints("axes", ())),
    )


def _dims(value: ir.Value, letter: str) -> tuple[Size, ...]:
    assert value.shape is not None
    return tuple(dim if isinstance(dim, int) else f"{letter}{k}" for k, dim in enumerate(value.shape))
