"""ONNX -> Relax: refuse, canonicalise, guard, expand what is left of integer operators, check, name, import, drop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.targets.lowering.canonical import canonicalise
from graphopt.targets.lowering.decompose.recurrent import unroll_recurrent
from graphopt.targets.lowering.decompose.resize import write_out_resizes
from graphopt.targets.lowering.guards import guard
from graphopt.targets.lowering.integer_ops import expand_integer_ops
from graphopt.targets.lowering.names import to_identifiers
from graphopt.targets.lowering.support import refuse_other_values, refuse_unsupported

if TYPE_CHECKING:
    import onnx_ir as ir
    import tvm

    from graphopt.targets.lowering.origins import Origin

MOST = 1 << 22
"""Elements of the largest array that is looked through for denormal numbers: those that matter are biases."""


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A Relax module and what its parameters and results are in terms of the ONNX model.

    `module`: its function ``main`` takes the model's inputs, then the weights, all as tensors, and returns a
    tensor, or a tuple of tensors where the model has several outputs. Variables carry the names of ONNX values
    and nodes, turned into C identifiers.
    `weights`: ONNX initializer name -> array, in the order of the parameters after the inputs.
    `inputs`, `outputs`: the ONNX names, in the order of parameters and results.
    `sources`: name of a Relax variable -> the nodes of the source model that it computes.
    """

    module: tvm.IRModule
    weights: dict[str, np.ndarray[Any, Any]]
    inputs: list[str]
    outputs: list[str]
    sources: dict[str, Origin]


def lower(model: ir.Model, plan: Callable[[ir.Model], object] | None = None) -> Lowered:
    """Lower a copy of `model` to Relax. Symbolic dimensions of the inputs stay symbolic.

    `plan` may replace parts of the canonical model, in place, by nodes that call a target's own functions (see
    `support.EXTERNAL`).

    Raises:
        LoweringError: naming every operator (and its nodes) that has no converter, or whose converter is known
            to give other results than ONNX; or a shape that TVM can't express symbolically.
    """
    from graphopt.targets.lowering.importer import import_graph

    refuse_other_values(model)
    model = canonicalise(model.clone())
    guard(model)
    if plan is not None:
        plan(model)
    unroll_recurrent(model)
    write_out_resizes(model)
    expand_integer_ops(model)
    refuse_unsupported(model)
    inputs = [value.name or "" for value in model.graph.inputs]
    outputs = [value.name or "" for value in model.graph.outputs]
    original = to_identifiers(model)
    module, weights, sources = import_graph(model)
    return Lowered(
        module=module,
        weights={original[name]: without_denormals(array) for name, array in weights.items()},
        inputs=inputs,
        outputs=outputs,
        sources=sources,
    )


def without_denormals(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Zero in place of numbers too small for a full mantissa: CPUs take some hundred cycles for each product with one.

    A dead channel's bias of 1e-39 gives a whole plane of them, and the next layer takes many times as long.
    """
    if array.dtype not in (np.float32, np.float64) or array.size == 0 or array.size > MOST:
        return array
    tiny = (array != 0) & (np.abs(array) < np.finfo(array.dtype).tiny)
    return np.where(tiny, np.zeros_like(array), array) if tiny.any() else array
