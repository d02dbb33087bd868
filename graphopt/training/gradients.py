"""Gradients of Relax operators that TVM 0.27 has none for."""

from __future__ import annotations

import math
from typing import Any

from tvm import relax
from tvm.relax import op
from tvm.relax.op.base import register_gradient
from tvm.relax.op.grad import no_grad

from graphopt.training.calls import call as packed
from graphopt.training.calls import define
from graphopt.training.window import Array

Expr = relax.Expr


def _sizes(value: Any) -> Any:  # a list of integers; TVM annotates shapes as tuples of expressions
    return [int(size) for size in value.ty.shape]


@register_gradient("relax.erf")
def _erf(_: relax.Var, call: Any, dy: relax.Var, __: relax.BlockBuilder) -> list[Expr]:
    x = call.args[0]
    slope = op.multiply(op.exp(op.negative(op.multiply(x, x))), relax.const(2 / math.sqrt(math.pi), "float32"))
    return [op.multiply(dy, slope)]


@register_gradient("relax.clip")
def _clip(_: relax.Var, call: Any, dy: relax.Var, __: relax.BlockBuilder) -> list[Expr]:
    x, low, high = call.args
    within = op.logical_and(
        op.greater_equal(x, relax.const(float(low.value), "float32")),
        op.less_equal(x, relax.const(float(high.value), "float32")),
    )
    return [op.where(within, dy, op.zeros_like(dy)), no_grad(low), no_grad(high)]


@register_gradient("relax.where", level=11)  # TVM's own gives a scalar the gradient of the whole tensor
def _where(_: relax.Var, call: Any, dy: relax.Var, builder: relax.BlockBuilder) -> list[Expr]:
    condition, *branches = call.args
    nothing = op.zeros_like(dy)
    parts = [op.where(condition, dy, nothing), op.where(condition, nothing, dy)]
    return [no_grad(condition), *(_summed(part, branch, builder) for part, branch in zip(parts, branches, strict=True))]


def _summed(gradient: Expr, like: Any, builder: relax.BlockBuilder) -> Expr:
    """`gradient` summed over the axes along which `like` was broadcast."""
    gradient = builder.emit(gradient)
    return gradient if _sizes(gradient) == _sizes(like) else op.collapse_sum_to(gradient, relax.ShapeExpr(_sizes(like)))


@register_gradient("relax.squeeze")
def _squeeze(_: relax.Var, call: Any, dy: relax.Var, __: relax.BlockBuilder) -> list[Expr]:
    return [op.reshape(dy, _sizes(call.args[0]))]


@register_gradient("relax.nn.leakyrelu")
def _leaky_relu(_: relax.Var, call: Any, dy: relax.Var, __: relax.BlockBuilder) -> list[Expr]:
    x = call.args[0]
    slope = relax.const(float(call.attrs.alpha), "float32")
    return [op.where(op.greater(x, relax.const(0.0, "float32")), dy, op.multiply(dy, slope))]


@register_gradient("relax.rsqrt")
def _rsqrt(y: relax.Var, _: Any, dy: relax.Var, __: relax.BlockBuilder) -> list[Expr]:
    cube = op.multiply(op.multiply(y, y), y)
    return [op.multiply(dy, op.multiply(cube, relax.const(-0.5, "float32")))]


@register_gradient("relax.stack")
def _stack(_: relax.Var, call: Any, dy: relax.Var, builder: relax.BlockBuilder) -> list[Expr]:
    fields = call.args[0].fields
    axis = int(call.attrs.axis) % len(_sizes(dy))
    if len(fields) == 1:
        return [relax.Tuple([op.squeeze(dy, [axis])])]
    parts = builder.emit(op.split(dy, len(fields), axis))
    return [relax.Tuple([op.squeeze(relax.TupleGetItem(parts, i), [axis]) for i in range(len(fields))])]


def _extreme(y: relax.Var, call: Any, dy: relax.Var, builder: relax.BlockBuilder) -> list[Expr]:
    """Equal largest ones share the gradient."""
    x = call.args[0]
    sizes, axes = _sizes(x), call.attrs.axis
    taken = range(len(sizes)) if axes is None else [int(axis) % len(sizes) for axis in axes]
    kept: Any = [1 if i in taken else size for i, size in enumerate(sizes)]
    hits = builder.emit(op.astype(op.equal(x, op.reshape(y, kept)), "float32"))
    count = op.sum(hits, axis=list(taken), keepdims=True)
    return [op.multiply(hits, op.divide(op.reshape(dy, kept), count))]


register_gradient("relax.max", _extreme)
register_gradient("relax.min", _extreme)


@register_gradient("relax.strided_slice")
def _strided_slice(_: relax.Var, call: Any, dy: relax.Var, __: relax.BlockBuilder) -> list[Expr]:
    x, axes, *bounds = call.args
    sizes = _sizes(x)
    places = [slice(None)] * len(sizes)
    for i, axis in enumerate(axes.fields):
        start, stop, *step = (int(bound.fields[i].value) for bound in bounds)
        at = int(axis.value) % len(sizes)
        places[at] = slice(*slice(start, stop, *step).indices(sizes[at]))
        if places[at].stop < 0:  # a descending slice that ends with the first element
            places[at] = slice(places[at].start, None, places[at].step)

    def put(part: Array, whole: Array) -> None:
        whole[:] = 0
        whole[tuple(places)] = part

    symbol = define(f"graphopt.training.unslice:{places}", put)
    return [packed(symbol, [dy], x), *(no_grad(argument) for argument in call.args[1:])]
