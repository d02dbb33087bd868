"""Reductions over axes that lie side by side, in ONNX's order or in that of the twin, onto the kernel."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.llvm.kernels import reduce
from graphopt.targets.llvm.kernels.reduce import Op, Reduce
from graphopt.targets.llvm.plan.kernels import ELEMENT, Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, image, is_turned, replace

OPS: dict[str, Op] = {
    "ReduceSum": "Sum", "ReduceMean": "Mean", "ReduceMax": "Max", "ReduceMin": "Min", "ReduceL1": "L1",
    "ReduceL2": "L2", "ReduceSumSquare": "SumSquare", "GlobalAveragePool": "Mean", "GlobalMaxPool": "Max",
}  # fmt: skip


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute a reduction if the kernel covers it; says whether it did."""
    x, op = node.inputs[0] if node.inputs else None, OPS.get(node.op_type)
    if op is None or node.domain != "" or x is None or x.shape is None or x.dtype != ir.DataType.FLOAT:
        return False
    rank, keep = len(x.shape), node.op_type.startswith("Global") or node.attributes.get_int("keepdims", 1) == 1
    axes = _axes(node, rank)
    if not axes:
        return False
    return (twins.known(x) and _on_twin(node, op, axes, keep, kernels, twins)) or _as_it_is(
        node, op, axes, keep, kernels, twins
    )


def _axes(node: ir.Node, rank: int) -> list[int] | None:
    """The axes in ascending order; None where they are not known or there are none."""
    if node.op_type.startswith("Global"):
        return list(range(2, rank))
    given = node.inputs[1] if len(node.inputs) > 1 else None
    array = constant_array(given)
    if given is not None and array is None:
        return None
    axes = [int(a) for a in (node.attributes.get_ints("axes", []) if array is None else array.reshape(-1))]
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0):
        return None
    return sorted(axis % rank for axis in axes) or list(range(rank))


def _on_twin(node: ir.Node, op: Op, axes: list[int], keep: bool, kernels: Kernels, twins: Twins) -> bool:
    """With the axes as the twin has them; the result has a twin, or its axes are in the same order either way."""
    x, result = node.inputs[0], node.outputs[0]
    rank = 0 if x is None or x.shape is None else len(x.shape)
    shape, after = image(x), image(result)
    if x is None or shape is None or rank > 4 or is_turned(x) or (keep and after is None):
        return False
    order = {0: 0, 1: 3} | ({2: 2} if rank == 3 else {2: 1, 3: 2})  # axis of the value -> of the twin
    left = [axis for axis in (0, 2, 3, 1) if axis < rank and axis not in axes]
    if not keep and left != sorted(left):
        return False
    places = sorted(order[axis] for axis in axes)
    dims = (shape.batch, shape.h, shape.w, shape.c)
    output = [1 if i in places else d for i, d in enumerate(shape.last)] if keep else [shape.first[a] for a in left]
    if not keep and rank == 3:
        output = [{0: shape.n, 1: shape.c, 2: shape.w}[axis] for axis in left]
    problem = _problem(op, dims, places)
    if problem is None:
        return False
    y = _call(problem, twins.last(x), output, node, kernels, twins)
    if not keep:
        replace(result, y)
        return True
    assert after is not None
    twins.set(result, twins.shaped(y, after.last, result))
    return True


def _as_it_is(node: ir.Node, op: Op, axes: list[int], keep: bool, kernels: Kernels, twins: Twins) -> bool:
    x = node.inputs[0]
    assert x is not None
    assert x.shape is not None
    dims = tuple(d if isinstance(d, int) else f"d{i}" for i, d in enumerate(x.shape))
    problem = _problem(op, dims, axes)
    if problem is None:
        return False
    x = twins.first(x)
    assert x.shape is not None
    kept = [1 if i in axes else d for i, d in enumerate(x.shape)]
    y = _call(problem, x, kept if keep else [d for i, d in enumerate(x.shape) if i not in axes], node, kernels, twins)
    replace(node.outputs[0], y)
    return True


def _problem(op: Op, dims: tuple[int | str, ...], axes: Sequence[int]) -> Reduce | None:
    start, stop = axes[0], axes[-1] + 1
    between = [axis for axis in range(start, stop) if axis not in axes and dims[axis] != 1]
    problem = Reduce(op, dims, start, stop)
    return problem if not between and problem.covered() else None


def _call(
    problem: Reduce, x: ir.Value, output: Sequence[int | ir.SymbolicDim], node: ir.Node, kernels: Kernels, twins: Twins
) -> ir.Value:
    assert x.shape is not None
    names = {str(d): name for d, name in zip(x.shape, problem.dims, strict=True) if isinstance(name, str)}
    shape = tuple(d if isinstance(d, int) else names[str(d)] for d in output)
    parallel = kernels.threads(problem.dims, ELEMENT)
    symbol = kernels.symbol(
        ("reduce", problem, shape), "reduce", lambda s: reduce.make(problem, shape, kernels.isa, parallel, s)
    )
    called = call(symbol, [x], output, node)
    twins.insert(called)
    return called.outputs[0]
