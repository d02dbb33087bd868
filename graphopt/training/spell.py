"""The canonical ONNX graph written in what can be differentiated: calls of `calls`, and simpler operators.

For instance ``Clip(x) = Where(x > high, high, Where(x < low, low, x))``, whose gradient Relax knows, while what TVM's
importer makes of Clip has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.errors import LoweringError
from graphopt.graph import add_constant, fresh_name
from graphopt.targets.lowering.support import EXTERNAL
from graphopt.training import calls
from graphopt.training.window import Window


def spell(model: ir.Model) -> None:
    """Rewrite in place what of `model`, canonical and with fixed sizes, has no gradient otherwise."""
    for node in list(model.graph):
        rule = _RULES.get(node.op_type) if node.domain == "" else None
        if rule is not None and all(v is None or v.dtype != ir.DataType.DOUBLE for v in node.inputs):
            rule(_Place(model.graph, node))


class _Place:
    """The node being replaced, and where its replacement goes."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node

    def put(
        self, op: str, inputs: Sequence[ir.Value | None], like: ir.Value, attributes: dict[str, ir.Attr] | None = None
    ) -> ir.Value:
        """A new node before the one being replaced; its result is of the shape of `like`."""
        output = ir.val(fresh_name(self.graph, f"{self.node.name}_{op}"), like.dtype, like.shape)
        return self._insert("", op, inputs, output, attributes or {})

    def call(self, symbol: str, inputs: Sequence[ir.Value], shape: Sequence[int]) -> ir.Value:
        """A call of a packed function."""
        output = ir.val(fresh_name(self.graph, f"{self.node.name}_call"), ir.DataType.FLOAT, ir.Shape(shape))
        return self._insert(*EXTERNAL, inputs, output, {"symbol": ir.AttrString("symbol", symbol)})

    def constant(self, hint: str, array: np.ndarray) -> ir.Value:
        """A new initializer."""
        return add_constant(self.graph, f"{self.node.name}_{hint}", array)

    def shaped(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """`value` in another shape."""
        like = ir.val(None, value.dtype, ir.Shape(shape))
        return self.put("Reshape", [value, self.constant("shape", np.array(shape, np.int64))], like)

    def done(self, value: ir.Value) -> None:
        """`value` takes the place of the node's only result."""
        ir.convenience.replace_nodes_and_values(self.graph, self.node, [self.node], [], [self.node.outputs[0]], [value])

    def _insert(
        self, domain: str, op: str, inputs: Sequence[ir.Value | None], output: ir.Value, attributes: dict[str, ir.Attr]
    ) -> ir.Value:
        name = fresh_name(self.graph, f"{self.node.name}_{op}")
        new = ir.Node(domain, op, inputs, list(attributes.values()), outputs=[output], name=name)
        self.graph.insert_before(self.node, new)
        return output


def _shape(node: ir.Node, value: ir.Value | None) -> tuple[int, ...]:
    if value is None or value.shape is None or not value.shape.is_static():
        raise LoweringError(
            f"Training needs the sizes of every tensor, and those of `{value and value.name}` at `{node.name}` are "
            "open: bind the model's open dimensions."
        )
    return tuple(value.shape.numpy())


def _window(node: ir.Node, space: tuple[int, ...], out: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """Where the node's window goes; `space` is the larger side, `out` the places it takes there."""
    rank = len(kernel)
    strides = tuple(node.attributes.get_ints("strides", [1] * rank))
    dilations = tuple(node.attributes.get_ints("dilations", [1] * rank))
    reach = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(out, strides, dilations, kernel, strict=True)]
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    missing = [max(0, r - size) for r, size in zip(reach, space, strict=True)]
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        begin = tuple((m + (auto == "SAME_LOWER")) // 2 for m in missing)
    else:
        begin = tuple(node.attributes.get_ints("pads", [0] * 2 * rank))[:rank]
    end = tuple(max(0, r - size - b) for r, size, b in zip(reach, space, begin, strict=True))
    return Window(kernel, strides, begin, end, dilations)


def _with_bias(at: _Place, value: ir.Value, bias: ir.Value | None) -> None:
    if bias is None:
        at.done(value)
        return
    (size,) = _shape(at.node, bias)
    lined = at.shaped(bias, [1, size, *[1] * (len(_shape(at.node, value)) - 2)])
    at.done(at.put("Add", [value, lined], value))


def _conv(at: _Place) -> None:
    x, weight, *rest = at.node.inputs
    assert x is not None
    assert weight is not None
    _, _, *space = _shape(at.node, x)
    _, _, *out = shape = _shape(at.node, at.node.outputs[0])
    window = _window(at.node, tuple(space), tuple(out), _shape(at.node, weight)[2:])
    groups = at.node.attributes.get_int("group", 1)
    symbol = calls.conv(window, groups, groups == shape[1] == _shape(at.node, x)[1] > 1)
    _with_bias(at, at.call(symbol, [x, weight], shape), rest[0] if rest else None)


def _conv_transpose(at: _Place) -> None:
    x, weight, *rest = at.node.inputs
    assert x is not None
    assert weight is not None
    _, _, *out = _shape(at.node, x)
    _, _, *space = shape = _shape(at.node, at.node.outputs[0])
    window = _window(at.node, tuple(space), tuple(out), _shape(at.node, weight)[2:])
    groups = at.node.attributes.get_int("group", 1)
    symbol = calls.conv_transpose(window, groups, groups == shape[1] == _shape(at.node, x)[1] > 1)
    _with_bias(at, at.call(symbol, [x, weight], shape), rest[0] if rest else None)


def _matmul(at: _Place) -> None:
    a, b = at.node.inputs
    assert a is not None
    assert b is not None
    if min(len(_shape(at.node, a)), len(_shape(at.node, b))) > 1 and a.dtype == ir.DataType.FLOAT:
        at.done(at.call(calls.product(), [a, b], _shape(at.node, at.node.outputs[0])))


def _gemm(at: _Place) -> None:
    a, b, *rest = at.node.inputs
    assert a is not None
    assert b is not None
    turns = bool(at.node.attributes.get_int("transA", 0)), bool(at.node.attributes.get_int("transB", 0))
    value = at.call(calls.product(*turns), [a, b], _shape(at.node, at.node.outputs[0]))
    value = _scaled(at, value, at.node.attributes.get_float("alpha", 1.0))
    if rest and rest[0] is not None:
        value = at.put("Add", [value, _scaled(at, rest[0], at.node.attributes.get_float("beta", 1.0))], value)
    at.done(value)


def _scaled(at: _Place, value: ir.Value, factor: float) -> ir.Value:
    if factor == 1.0:
        return value
    return at.put("Mul", [value, at.constant("factor", np.array(factor, np.float32))], value)


def _max_pool(at: _Place) -> None:
    if len(at.node.outputs) > 1 and at.node.outputs[1].uses():
        return
    (x,), out = at.node.inputs, _shape(at.node, at.node.outputs[0])
    assert x is not None
    kernel = tuple(at.node.attributes.get_ints("kernel_shape", ()))
    window = _window(at.node, _shape(at.node, x)[2:], out[2:], kernel)
    at.done(at.call(calls.max_pool(window), [x], out))


def _average_pool(at: _Place) -> None:
    (x,), out = at.node.inputs, _shape(at.node, at.node.outputs[0])
    assert x is not None
    include = bool(at.node.attributes.get_int("count_include_pad", 0))
    if include and at.node.attributes.get_int("ceil_mode", 0):
        return
    kernel = tuple(at.node.attributes.get_ints("kernel_shape", ()))
    window = _window(at.node, _shape(at.node, x)[2:], out[2:], kernel)
    at.done(at.call(calls.average_pool(window, include), [x], out))


def _clip(at: _Place) -> None:
    x, low, high = [*at.node.inputs, None, None][:3]
    assert x is not None
    value = x
    for bound, test in ((low, "Less"), (high, "Greater")):
        if bound is not None:
            value = _choose(at, test, bound, value, value)
    at.done(value if value is not x else at.put("Identity", [x], x))


def _extreme(test: str) -> Callable[[_Place], None]:
    def rewrite(at: _Place) -> None:
        first, *rest = at.node.inputs
        assert first is not None
        value, like = first, at.node.outputs[0]
        for other in rest:
            assert other is not None
            value = _choose(at, test, other, value, like)
        at.done(value if rest else at.put("Identity", [value], value))

    return rewrite


def _choose(at: _Place, test: str, bound: ir.Value, value: ir.Value, like: ir.Value) -> ir.Value:
    """`bound` where `value` `test` `bound`, else `value`; a NaN stays one."""
    shape = np.broadcast_shapes(_shape(at.node, bound), _shape(at.node, value))
    like = ir.val(None, like.dtype, ir.Shape(shape))
    there = at.put(test, [value, bound], ir.val(None, ir.DataType.BOOL, like.shape))
    return at.put("Where", [there, bound, value], like)


def _p_relu(at: _Place) -> None:
    x, slope = at.node.inputs
    assert x is not None
    zero = at.constant("zero", np.array(0, np.float32))
    there = at.put("Less", [x, zero], ir.val(None, ir.DataType.BOOL, x.shape))
    at.done(at.put("Where", [there, at.put("Mul", [x, slope], x), x], x))


def _hard_swish(at: _Place) -> None:
    (x,) = at.node.inputs
    assert x is not None
    slope, half = ir.AttrFloat32("alpha", 1 / 6), ir.AttrFloat32("beta", 0.5)
    at.done(at.put("Mul", [x, at.put("HardSigmoid", [x], x, {"alpha": slope, "beta": half})], x))


def _gelu(at: _Place) -> None:
    (x,) = at.node.inputs
    assert x is not None
    if at.node.attributes.get_string("approximate", "none") != "none":
        inner = at.put("Mul", [at.put("Mul", [x, x], x), x], x)
        inner = at.put("Add", [x, _scaled(at, inner, 0.044715)], x)
        curve = at.put("Tanh", [_scaled(at, inner, math.sqrt(2 / math.pi))], x)
    else:
        curve = at.put("Erf", [_scaled(at, x, math.sqrt(0.5))], x)
    curve = at.put("Add", [curve, at.constant("one", np.array(1, np.float32))], x)
    at.done(_scaled(at, at.put("Mul", [x, curve], x), 0.5))


def _mean(at: _Place, x: ir.Value, like: ir.Value, axes: Sequence[int]) -> ir.Value:
    """The mean along `axes`, which opset 18 made an input."""
    if at.graph.opset_imports.get("", 1) < 18:
        return at.put("ReduceMean", [x], like, {"axes": ir.AttrInt64s("axes", axes)})
    return at.put("ReduceMean", [x, at.constant("axes", np.array(axes, np.int64))], like)


def _layer_norm(at: _Place) -> None:
    x, scale, *rest = at.node.inputs
    assert x is not None
    if any(v.uses() for v in at.node.outputs[1:]):
        return
    shape = _shape(at.node, x)
    axis = at.node.attributes.get_int("axis", -1) % len(shape)
    mean = ir.val(None, x.dtype, ir.Shape([*shape[:axis], *[1] * (len(shape) - axis)]))
    centred = at.put("Sub", [x, _mean(at, x, mean, range(axis, len(shape)))], x)
    variance = _mean(at, at.put("Mul", [centred, centred], x), mean, range(axis, len(shape)))
    eps = at.constant("epsilon", np.array(at.node.attributes.get_float("epsilon", 1e-5), np.float32))
    spread = at.put("Sqrt", [at.put("Add", [variance, eps], mean)], mean)
    value = at.put("Mul", [at.put("Div", [centred, spread], x), scale], x)
    at.done(at.put("Add", [value, rest[0]], x) if rest and rest[0] is not None else value)


_RULES: dict[str, Callable[[_Place], None]] = {
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "Max": _extreme("Less"),
    "MaxPool": _max_pool,
    "Min": _extreme("Greater"),
    "PRelu": _p_relu,
}
