"""`fold-constants`: what can be computed before the model runs."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Generator
from typing import Annotated, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from graphopt.base import Context, Pass, Preserves, Report, tolerance
from graphopt.graph import remove_unused
from graphopt.graph.check import traps
from graphopt.passes.random_ops import is_random

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
PLAIN = frozenset((
    "Add", "AveragePool", "BatchNormalization", "Clip", "Conv", "ConvTranspose", "Div", "Exp", "Flatten", "Gelu",
    "Gemm", "GlobalAveragePool", "HardSigmoid", "HardSwish", "LayerNormalization", "LeakyRelu", "MatMul", "MaxPool",
    "Mul", "PRelu", "Pow", "Relu", "Sigmoid", "Softmax", "Sqrt", "Sub", "Sum", "Tanh",
))  # fmt: skip
"""Operators on floats of which onnxscript's folder simplifies nothing while an input is unknown."""


def fold_constants(model: ir.Model, max_bytes: int) -> Report:
    """Replace nodes whose inputs are all constant by their results, with onnxscript's folder; in place.

    Its partial evaluators run too: shapes that are known, If with a constant condition, casts that change
    nothing. Left alone: random operators, quantizers (they mark what is quantized), integer divisions that trap,
    and results larger than both `max_bytes` and the constants they are made of.
    """
    report = Report()
    allowed: list[ir.Node] = []
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    nodes = [node for root in roots for node in root.all_nodes()]

    def should_fold(node: ir.Node) -> bool:
        reason = _why_not(node, max_bytes)
        if reason:
            report.skip(node.name, reason)
        else:
            allowed.append(node)
        return reason is None

    if not all(map(_is_plain, nodes)):
        _forget_doubtful(nodes)
        known = all(v.shape is not None and v.type is not None for node in nodes for v in node.outputs)
        if not known or _fold(model, should_fold, infer=False):  # where shapes are known, to infer is to find the same
            report.skipped.clear()
            _fold(model, should_fold, infer=True)
    folded = {node for node in nodes if node.graph is None}
    for node in allowed:
        if node not in folded:
            report.skip(node.name, f"the reference evaluator can't compute {node.op_type}")
    remove_unused(model)
    for node in nodes:
        if node.graph is None:
            report.change(node.name, f"{'folded' if node in folded else 'dropped unread'} {node.op_type}")
    return report


def _forget_doubtful(nodes: list[ir.Node]) -> None:
    """Drop the shapes of what an If yields whose branches differ in rank; exporters state that of one of them."""
    for node in nodes:
        if node.op_type == "If":
            branches = [a.as_graph().outputs for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
            for value, *ends in zip(node.outputs, *branches, strict=False):  # the model may not have been checked
                ranks = {None if end.shape is None else len(end.shape) for end in ends}
                if len(ranks) > 1:
                    value.shape = None


def _is_plain(node: ir.Node) -> bool:
    """Is there nothing to fold here for certain? Most nodes are so, and to know it is quicker than to load a folder."""
    return (
        (node.op_type in PLAIN or _changes_rank(node))
        and node.domain in ("", "ai.onnx")
        and all(v.dtype is not None and v.dtype.is_floating_point() for v in node.outputs)
        and any(v is not None and v.const_value is None for v in node.inputs)
    )


def _changes_rank(node: ir.Node) -> bool:
    """A Reshape that can't be an Identity."""
    if node.op_type != "Reshape" or node.inputs[0] is None:
        return False
    before, after = node.inputs[0].shape, node.outputs[0].shape
    return before is not None and after is not None and len(before) != len(after)


def _fold(model: ir.Model, should_fold: Callable[[ir.Node], bool], *, infer: bool) -> bool:
    """Run onnxscript's folder; whether it changed something."""
    from onnxscript.optimizer import fold_constants_ir

    with _quiet(), np.errstate(all="ignore"):
        done = fold_constants_ir(
            model,
            onnx_shape_inference=infer,
            input_size_limit=sys.maxsize,
            output_size_limit=sys.maxsize,
            should_fold=should_fold,
        )
    return done.modified


def _why_not(node: ir.Node, max_bytes: int) -> str | None:
    if is_random(node):
        return f"{node.op_type} is random"
    if node.op_type in QUANTIZERS:
        return f"{node.op_type} marks what is quantized"
    if node.op_type == "Cast" and _is_bfloat16(node.inputs[0]):
        return "Cast widens what is stored as bfloat16"
    if any(v.is_graph_output() for v in node.outputs):
        return "its result is an output of the graph"
    if node.op_type in ("Div", "Mod") and traps(node):
        return "it divides an integer by zero, or the smallest integer by minus one"
    sizes = [_bytes(v) for v in node.outputs]
    if any(size is None for size in sizes):
        return "the size of its result is unknown"
    total = sum(size or 0 for size in sizes)
    if total > max(max_bytes, sum(_bytes(v) or 0 for v in node.inputs if v is not None)):
        return f"its result has {total} bytes, more than max_bytes={max_bytes} and than its inputs"
    return None


def _is_bfloat16(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.BFLOAT16


def _bytes(value: ir.Value) -> int | None:
    if value.shape is None or value.dtype is None or not all(isinstance(d, int) for d in value.shape):
        return None
    return int(np.prod([int(d) for d in value.shape], dtype=np.float64) * value.dtype.itemsize)  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """onnxscript logs each node that it can't evaluate as a warning; they are reported as skipped instead."""
    logger = logging.getLogger("onnxscript.optimizer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute before the model runs what depends on constants alone.

    max_bytes: results above this are folded only when they are no larger than the constants they are made of.
    """

    name: ClassVar[str] = "fold-constants"
    preserves: ClassVar[Preserves] = tolerance(rtol=1e-5, atol=1e-6)

    max_bytes: Annotated[int, Field(ge=0)] = 1 << 20

    def apply(self, model: ir.Model, context: Context) -> Report:
        """See `fold_constants`."""
        return fold_constants(model, self.max_bytes)
