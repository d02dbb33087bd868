"""Products that read a transposed operand where it lies: no kernel transposes it first.

So attention reads queries, keys and values as the layers before it left them, and weights laid out along the sum, which
is what tensor cores load fastest for 8-bit integers, need no other copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax, te, tirx

from graphopt.targets.cuda.schedules.wmma import SUMS


def read_transposed(module: tvm.IRModule) -> tvm.IRModule:
    """Each matrix product for tensor cores whose operands are permuted tensors reads these tensors themselves."""
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            mutator: Any = _Products(module)
            mutator.builder_.update_func(variable, mutator.visit_expr(function))
            module = mutator.builder_.get()
    return module


@relax.expr_functor.mutator
class _Products(relax.PyExprMutator):
    def visit_call_(self, op: Any) -> Any:
        call: Any = self.visit_expr_post_order(op)
        if getattr(call.op, "name", "") != "relax.matmul" or not _is_for_tensor_cores(call):
            return call
        operands = [self._source(operand, index) for index, operand in enumerate(call.args)]
        if all(axes is None for _, axes in operands):
            return call
        (a, of_a), (b, of_b) = operands
        dtype = str(call.ty.dtype)

        def product(a: Any, b: Any) -> Any:
            return _product(a, of_a, b, of_b, dtype)

        return self.builder_.call_te(product, a, b, primfunc_name_hint="matmul")

    def _source(self, operand: Any, index: int) -> tuple[Any, list[int] | None]:
        """The tensor that the product's operand `index` is a permutation of, and its axes in the operand's order."""
        value: Any = self.lookup_binding(operand) if isinstance(operand, relax.Var) else None
        if getattr(getattr(value, "op", None), "name", "") != "relax.permute_dims":
            return operand, None
        rank = len(value.args[0].ty.shape)
        axes = [int(axis) % rank for axis in value.attrs.axes or reversed(range(rank))]
        runs = {axes[-1], axes[-2]} if index == 1 else {axes[-1]}
        return (value.args[0], axes) if rank - 1 in runs else (operand, None)


def _is_for_tensor_cores(call: Any) -> bool:
    """What is no product of single rows, and of types that tensor cores take."""
    a, b = (operand.ty for operand in call.args)
    if str(a.dtype) != str(b.dtype) or SUMS.get(str(a.dtype)) != str(call.ty.dtype):
        return False
    if a.shape is None or b.shape is None or min(len(a.shape), len(b.shape)) < 2:
        return False
    return not _is_one(a.shape[-2]) and not _is_one(b.shape[-1])


def _product(a: Any, of_a: Sequence[int] | None, b: Any, of_b: Sequence[int] | None, dtype: str) -> Any:
    """``sum_k a[..., i, k] * b[..., k, j]``, where ``x[p] = tensor[q], q[axes[d]] = p[d]``, in `dtype`."""
    order_a, order_b = of_a or range(len(a.shape)), of_b or range(len(b.shape))
    shape_a, shape_b = [a.shape[axis] for axis in order_a], [b.shape[axis] for axis in order_b]
    rank = max(len(shape_a), len(shape_b))
    batch: list[Any] = []
    for place in range(rank - 2):
        sizes = [shape[place - rank] for shape in (shape_a, shape_b) if len(shape) >= rank - place]
        batch.append(next((size for size in sizes if not _is_one(size)), sizes[0]))
    k = te.reduce_axis((0, shape_a[-1]), "k")

    def element(*at: Any) -> Any:
        left = _at(a, order_a, shape_a, [*at[:-2], at[-2], k.var])
        right = _at(b, order_b, shape_b, [*at[:-2], k.var, at[-1]])
        return te.sum(left.astype(dtype) * right.astype(dtype), axis=k)

    return te.compute([*batch, shape_a[-2], shape_b[-1]], element, name="matmul")


def _at(tensor: Any, order: Sequence[int], shape: Sequence[Any], place: Sequence[Any]) -> Any:
    """The element of the permuted `tensor` at `place`, of which it may lack the first axes, or have them of size 1."""
    own = place[len(place) - len(shape) :]
    indices: list[Any] = [0] * len(shape)
    for axis, size, index in zip(order, shape, own, strict=True):
        indices[axis] = 0 if _is_one(size) else index
    return tensor[tuple(indices)]


def _is_one(size: Any) -> bool:
    return isinstance(size, tirx.IntImm) and int(size) == 1
