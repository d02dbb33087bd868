"""Packed functions with gradients: what `products` and `pools` compute, as Relax calls that TVM can differentiate.

Relax differentiates operators, by a gradient registered for each. A call of a packed function has none, so one is
registered here for ``relax.call_dps_packed`` itself: it looks up what `define` said about the function's symbol.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.op.base import register_gradient
from tvm.relax.op.grad import no_grad

from graphopt.training import depthwise, pools, products
from graphopt.training.window import Array, Window

Expr = relax.Expr
Gradient = Callable[[relax.Var, list[Any], relax.Var, relax.BlockBuilder], list[Expr]]
"""(result, arguments, gradient of the result, builder) -> the gradient of each argument."""

_GRADIENTS: dict[str, Gradient] = {}


def define(symbol: str, compute: Callable[..., None], gradient: Gradient | None = None) -> str:
    """Make `compute`, which writes into its last argument, callable from Relax as `symbol`; returns `symbol`."""
    if tvm.get_global_func(symbol, allow_missing=True) is None:
        tvm.register_global_func(symbol, lambda *tensors: compute(*map(np.from_dlpack, tensors)))
    if gradient is not None:
        _GRADIENTS[symbol] = gradient
    return symbol


def call(symbol: str, arguments: Sequence[Expr], like: Any) -> Expr:
    """A call of `symbol` whose result is of the type of `like`."""
    return relax.call_dps_packed(symbol, relax.Tuple(list(arguments)), out_ty=like.ty)


def _differentiate(result: relax.Var, packed: Any, gradient: relax.Var, builder: relax.BlockBuilder) -> Any:
    symbol = str(packed.args[0].global_symbol)
    if symbol not in _GRADIENTS:
        raise ValueError(f"{symbol} has no gradient")
    parts = _GRADIENTS[symbol](result, list(packed.args[1].fields), gradient, builder)
    return [no_grad(packed.args[0]), relax.Tuple(parts)]


register_gradient("relax.call_dps_packed", _differentiate)


def conv(window: Window, groups: int, by_channel: bool) -> str:
    """(x, weight) -> the convolution; `by_channel`: each channel has a weight of its own, and yields one channel."""
    return _convolution("conv", window, groups, by_channel)


def conv_transpose(window: Window, groups: int, by_channel: bool) -> str:
    """(y, weight) -> the transposed convolution."""
    return _convolution("conv_transpose", window, groups, by_channel)


def _convolution(what: str, window: Window, groups: int, by_channel: bool) -> str:
    """Each of the two is the other's gradient with respect to its first argument."""
    functions: dict[str, Callable[..., None]] = {
        "conv": depthwise.conv if by_channel else functools.partial(products.conv, groups=groups),
        "conv_transpose": depthwise.input_gradient
        if by_channel
        else functools.partial(products.conv_input_gradient, groups=groups),
    }
    weights = (
        depthwise.weight_gradient if by_channel else functools.partial(products.conv_weight_gradient, groups=groups)
    )
    names = {name: f"graphopt.training.{name}:{window}:{groups}:{by_channel:d}" for name in (*functions, "weights")}
    of_weights = define(names["weights"], functools.partial(weights, window))
    for name, function in functions.items():
        other = names["conv_transpose" if name == "conv" else "conv"]
        define(names[name], functools.partial(function, window), _of_convolution(name, other, of_weights))
    return names[what]


def _of_convolution(name: str, other: str, of_weights: str) -> Gradient:
    def backward(_: relax.Var, arguments: list[Any], gradient: relax.Var, __: relax.BlockBuilder) -> list[Expr]:
        first, weight = arguments
        outer = [first, gradient] if name == "conv" else [gradient, first]
        return [call(other, [gradient, weight], first), call(of_weights, outer, weight)]

    return backward


def product(turn_a: bool = False, turn_b: bool = False) -> str:
    """(a, b) -> their product over the last two axes, either of them turned; other axes are broadcast."""

    def compute(a: Array, b: Array, out: Array) -> None:
        products.product(a, b, out, turn_a, turn_b)

    def backward(_: relax.Var, arguments: list[Any], dy: relax.Var, builder: relax.BlockBuilder) -> list[Expr]:
        a, b = arguments
        da = _product(b, dy, turn_b, True, a, builder) if turn_a else _product(dy, b, False, not turn_b, a, builder)
        db = _product(dy, a, True, turn_a, b, builder) if turn_b else _product(a, dy, not turn_a, False, b, builder)
        return [da, db]

    return define(f"graphopt.training.product:{turn_a:d}{turn_b:d}", compute, backward)


def _product(a: Any, b: Any, turn_a: bool, turn_b: bool, like: Any, builder: relax.BlockBuilder) -> Expr:
    """The product as the gradient of `like`: summed over the axes along which `like` was broadcast."""
    (*batch_a, m, k), (*batch_b, p, q) = (tuple(int(size) for size in one.ty.shape) for one in (a, b))
    wanted: Any = tuple(int(size) for size in like.ty.shape)
    rows, columns = (k if turn_a else m), (p if turn_b else q)
    if len(wanted) == 2 and turn_a and not turn_b and batch_a == batch_b:
        return call(product(True, False), [a, b], like)  # summed as it is computed
    batch = np.broadcast_shapes(tuple(batch_a), tuple(batch_b))
    shape: Any = (*batch, rows, columns)
    whole = relax.TensorType(shape, "float32")
    result = relax.call_dps_packed(product(turn_a, turn_b), relax.Tuple([a, b]), out_ty=whole)
    return result if shape == wanted else relax.op.collapse_sum_to(builder.emit(result), relax.ShapeExpr(wanted))


def max_pool(window: Window) -> str:
    """x -> the largest of each window."""

    def backward(y: relax.Var, arguments: list[Any], dy: relax.Var, _: relax.BlockBuilder) -> list[Expr]:
        return [call(gradient, [arguments[0], y, dy], arguments[0])]

    gradient = define(
        f"graphopt.training.max_pool_gradient:{window}",
        functools.partial(pools.max_pool_gradient, window),
    )
    return define(f"graphopt.training.max_pool:{window}", functools.partial(pools.max_pool, window), backward)


def average_pool(window: Window, include_pad: bool) -> str:
    """x -> the mean of each window."""

    def backward(_: relax.Var, arguments: list[Any], dy: relax.Var, __: relax.BlockBuilder) -> list[Expr]:
        return [call(gradient, [dy], arguments[0])]

    name = f"graphopt.training.{{}}:{window}:{include_pad:d}"
    gradient = define(
        name.format("average_pool_gradient"),
        functools.partial(pools.average_pool_gradient, window, include_pad),
    )
    return define(name.format("average_pool"), functools.partial(pools.average_pool, window, include_pad), backward)
