"""Steps of random models, each of one to five nodes: layers, arithmetic and joints as exporters write them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphopt.testing.random_net import SIZE, Net, Value

Step = Callable[[Net, Value, int, int], None]
"""Adds nodes that read the value; the two small numbers choose among its forms."""


def _norm(net: Net, v: Value, a: int, b: int) -> None:
    if v.size == 0 and b % 2:
        return
    parameters = [net.weight(v.channels, low=0.5 if a % 3 else -1.5, high=1.5)]
    parameters += [net.weight(v.channels), net.weight(v.channels), net.weight(v.channels, low=0.3, high=2.0)]
    epsilon = ("", "<epsilon=0.25>", "<epsilon=0.001>")[b % 3]
    net.emit(f"BatchNormalization{epsilon}({v.name}, {', '.join(parameters)})", v)


def _conv(net: Net, v: Value, a: int, b: int) -> None:
    if v.size == 0:
        _matrix(net, v, a, b)
        return
    k, group = (1, 3)[b & 1], (1, 2, v.channels)[a % 3]
    out = v.channels if a % 3 == 2 else (4, 6)[a & 1]
    group = group if v.channels % group == 0 and out % group == 0 else 1
    stride = 2 if b % 7 == 6 and v.size == SIZE else 1
    bias = f", {net.weight(out)}" if b & 2 else ""
    w = net.kernel(b % 4 == 3, out, v.channels // group, k, k)
    attributes = f"group={group}, strides=[{stride},{stride}], pads=[{k // 2},{k // 2},{k // 2},{k // 2}]"
    net.emit(f"Conv<{attributes}>({v.name}, {w}{bias})", v, out, -(-v.size // stride))


def _conv_transpose(net: Net, v: Value, a: int, b: int) -> None:
    if v.size:
        group = 2 if a & 1 and v.channels % 2 == 0 else 1
        bias = f", {net.weight(4)}" if b & 2 else ""
        w = net.kernel(bool(b & 4), v.channels, 4 // group, 3, 3)
        net.emit(f"ConvTranspose<group={group}, pads=[1,1,1,1]>({v.name}, {w}{bias})", v, 4)


def _matrix(net: Net, v: Value, a: int, b: int) -> None:
    if v.size:
        return
    w = net.kernel(False, *((5, v.channels) if a & 1 else (v.channels, 5)))
    if a & 1:
        bias = f", {net.weight(5)}" if b & 1 else ""
        net.emit(f"Gemm<transB=1>({v.name}, {w}{bias})", v, 5)
    else:
        net.emit(f"MatMul({v.name}, {w})", v, 5)


def _activation(net: Net, v: Value, a: int, b: int) -> None:
    kinds = ("Relu", "Sigmoid", "Tanh", "LeakyRelu<alpha=0.1>", "HardSigmoid", "Softplus", "Elu", "Softsign", "Abs")
    net.emit(f"{kinds[a % len(kinds)]}({v.name})", v)


def _affine(net: Net, v: Value, a: int, b: int) -> None:
    shapes = [(1,), (v.channels,), ()] if v.size == 0 else [(v.channels, 1, 1), (1,), (1, v.channels, 1, 1), ()]
    operand = net.weight(*shapes[a % len(shapes)], low=0.5, high=1.5)
    op = ("Mul", "Add", "Sub", "Div")[b % 4]
    net.emit(f"{op}({operand}, {v.name})" if b >= 8 and op != "Div" else f"{op}({v.name}, {operand})", v)


def _constants(net: Net, v: Value, a: int, b: int) -> None:
    """An operand that is itself computed from constants: one of them a Constant node."""
    half = 0.5 if net.type == "float" else int(np.float16(0.5).view(np.uint16))  # ONNX's text writes a float16 as bits
    node = net.line(f"Constant<value = {net.type}[1] {{{half}}}>()")
    both = net.line(f"{('Mul', 'Add')[a & 1]}({node}, {net.weight(v.channels, 1, 1) if v.size else net.weight(1)})")
    net.emit(f"{('Add', 'Mul')[b & 1]}({v.name}, {both})", v)


def _same(net: Net, v: Value, a: int, b: int) -> None:
    """What changes nothing: Identity, Dropout, a cast there and back, a Transpose there and back."""
    match a % 4:
        case 0:
            net.emit(f"Identity({v.name})", v)
        case 1:
            net.emit(f"Dropout({v.name})", v)
        case 2:
            back = net.line(f"Cast<to={net.code}>({net.line(f'Cast<to={11 if b & 1 else net.code}>({v.name})')})")
            net.emit(
                f"LeakyRelu<alpha=0.5>({back})", v
            )  # onnxruntime 1.31 drops such casts even where an If captures the result
        case _:
            perm = "[0,2,3,1]" if v.size else "[1,0]"
            back = "[0,3,1,2]" if v.size else "[1,0]"
            net.emit(f"Transpose<perm={back}>({net.line(f'Transpose<perm={perm}>({v.name})')})", v)


def _reshape(net: Net, v: Value, a: int, b: int) -> None:
    """Into [N, C, H·W] and back: by constants, or by the shape that Shape gives."""
    if v.size:
        flat = net.line(f"Reshape({v.name}, {net.constant(np.array([0, v.channels, -1]))})")
        shape = (
            net.line(f"Shape({v.name})") if a & 1 or net.open_image else net.constant(np.array([0, 0, v.size, v.size]))
        )
        net.emit(f"Reshape({flat}, {shape})", v)


def _residual(net: Net, v: Value, a: int, b: int) -> None:
    """A sum or its like; what is subtracted is less than half, for nothing of x - x but the rounding is left."""
    other = net.partner(v, a, same_channels=True)
    scaled = net.line(f"Mul({other.name}, {net.weight(1, low=0.3, high=0.5)})") if b % 4 else other.name
    net.emit(f"{('Add', 'Sum', 'Sub', 'Max')[b % 4]}({v.name}, {scaled})", v)


def _concat(net: Net, v: Value, a: int, b: int) -> None:
    other = net.partner(v, a, same_channels=False)
    if v.channels + other.channels <= 16:
        axis = 1 if b & 1 or not v.size else -3
        net.emit(f"Concat<axis={axis}>({v.name}, {other.name})", v, v.channels + other.channels)


def _split(net: Net, v: Value, a: int, b: int) -> None:
    """Half of the channels by Slice; the other half may stay unread."""
    if v.channels % 2 == 0:
        half = v.channels // 2
        start = half * (a & 1)
        ends = ", ".join(net.constant(np.array([n])) for n in (start, start + half, 1))
        net.emit(f"Slice({v.name}, {ends})", v, half)


def _pool(net: Net, v: Value, a: int, b: int) -> None:
    if v.size:
        kind = ("MaxPool", "AveragePool", "AveragePool<count_include_pad=1, ")[a % 3]
        opened = kind if kind.endswith(", ") else f"{kind}<"
        stride = 2 if b % 5 == 4 and v.size == SIZE else 1
        attributes = f"kernel_shape=[3,3], pads=[1,1,1,1], strides=[{stride},{stride}]"
        net.emit(f"{opened}{attributes}>({v.name})", v, size=(v.size - 1) // stride + 1)


def _mask(net: Net, v: Value, a: int, b: int) -> None:
    """x·[x > 0] through booleans and a cast, or Where."""
    positive = net.line(f"Greater({v.name}, {net.constant(np.zeros((), net.dtype))})")
    if a & 1:
        net.emit(f"Where({positive}, {v.name}, {net.line(f'LeakyRelu<alpha=0.2>({v.name})')})", v)
    else:
        net.emit(f"Mul({v.name}, {net.line(f'Cast<to={net.code}>({positive})')})", v)


def _branch(net: Net, v: Value, a: int, b: int) -> None:
    """An If on the input alone, so that rounding can't turn it; both branches read values from outside."""
    kind = net.kind(v)
    at = net.line(f"Greater({net.line('ReduceMax<keepdims=0>(x)')}, {net.constant(np.full((), a / 4, net.dtype))})")
    norm = [net.weight(v.channels, low=0.5, high=1.5) for _ in range(4)]
    bodies = (
        "{o} = Relu({v})",
        "{i} = Identity({v})\n{o} = Sigmoid({i})",
        "{o} = BatchNormalization({v}, {norm})",
        "{i} = Mul({v}, {g})\n{o} = Add({i}, {v})",
    )
    branches: list[str] = []
    for key, body in (("then_branch", bodies[b % 4]), ("else_branch", bodies[(b // 4 + 1) % 4])):
        output = net.name("o")
        g = net.constant(np.full((1,), 0.5, net.dtype))
        lines = body.format(o=output, i=net.name("i"), v=v.name, norm=", ".join(norm), g=g)
        branches.append(f"{key} = {key} () => ({kind} {output}) {{\n{lines}\n}}")
    net.emit(f"If({at})<{', '.join(branches)}>", v)


def add_tail(net: Net, v: Value) -> None:
    """A classifier's end."""
    if v.size:
        pooled = net.line(f"GlobalAveragePool({v.name})")
        net.emit(f"Flatten({pooled})", v, size=0)
    _matrix(net, net.values[-1], 1, 1)
    net.emit(f"Softmax<axis=-1>({net.values[-1].name})", net.values[-1])


STEPS: dict[str, Step] = {
    "norm": _norm,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "activation": _activation,
    "affine": _affine,
    "constants": _constants,
    "same": _same,
    "reshape": _reshape,
    "residual": _residual,
    "concat": _concat,
    "split": _split,
    "pool": _pool,
    "mask": _mask,
    "branch": _branch,
}
