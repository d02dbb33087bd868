"""A hypothesis strategy of valid models: what exporters write, in combinations that nobody would."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from graphopt.testing.text import from_text

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

CHANNELS, SIZE = 4, 6
"""The input is ``[N, CHANNELS, SIZE, SIZE]``, N open."""
TYPES = {"float32": ("float", 1), "float16": ("float16", 10)}
"""numpy's name -> ONNX's name and number."""
OPSETS = (13, 17, 21)


def graphs(
    *, max_steps: int = 12, dtypes: Sequence[str] = ("float32", "float16"), subgraphs: bool = True
) -> st.SearchStrategy[ir.Model]:
    """Models in normal form with one input ``x`` [N, 4, 6, 6]: convolutions, batch norms everywhere, residuals,
    values with several readers, shared weights, concatenation, reshapes, branches (If) that capture values, constant
    arithmetic, masks and casts, dead nodes, several outputs, in opsets 13 to 21.

    All are continuous in their inputs and of moderate values, so that a rewrite's rounding stays a rounding. The same
    example always gives the same model, and it shrinks to few nodes.

    Args:
        max_steps: a step is one to five nodes.
        dtypes: of the activations and weights: "float32", "float16".
        subgraphs: whether there are If nodes.
    """
    names = [name for name in STEPS if subgraphs or name != "branch"]
    step = st.tuples(st.sampled_from([*names, "norm", "norm", "conv"]), st.integers(0, 11), st.integers(0, 11))
    return st.builds(
        _build,
        st.lists(step, min_size=1, max_size=max_steps),
        seed=st.integers(0, 7),
        dtype=st.sampled_from(list(dtypes)),
        opset=st.sampled_from(OPSETS),
        returned=st.integers(0, 11),
        tail=st.booleans(),
    )


def _build(
    steps: Sequence[tuple[str, int, int]], seed: int, dtype: str, opset: int, returned: int, tail: bool
) -> ir.Model:
    net = _Net(seed, dtype)
    for name, a, b in steps:
        STEPS[name](net, net.values[-1 - (a % 4 == 3) * (b % len(net.values))], a, b)
    if tail:
        _tail(net, net.values[-1])
    if len(net.values) == 1:
        net.emit("Relu(x)", net.values[0])
    return net.model(opset, [net.values[-1], net.values[1 + returned % (len(net.values) - 1)]])


@dataclasses.dataclass(frozen=True)
class _Value:
    name: str
    channels: int
    size: int
    """Height and width; 0 for a matrix [N, channels]."""


class _Net:
    """ONNX text that grows step by step."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self.type, self.code = TYPES[dtype]
        self.rng = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.weights: dict[str, Array] = {}
        self.shared: dict[tuple[int, ...], str] = {}
        self.values = [_Value("x", CHANNELS, SIZE)]
        self.taken = 0

    def name(self, kind: str) -> str:
        self.taken += 1
        return f"{kind}{self.taken}"

    def constant(self, array: Array) -> str:
        name = self.name("w")
        self.weights[name] = array
        return name

    def weight(self, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        return self.constant(self.rng.uniform(low, high, shape).astype(self.dtype))

    def kernel(self, share: bool, *shape: int) -> str:
        """Convolution weights that keep the activations' variance; the last of this shape again when `share`."""
        if not share or shape not in self.shared:
            limit = float(3 / np.prod(shape[1:])) ** 0.5
            self.shared[shape] = self.weight(*shape, low=-limit, high=limit)
        return self.shared[shape]

    def line(self, expression: str) -> str:
        name = self.name("t")
        self.lines.append(f"{name} = {expression}")
        return name

    def emit(self, expression: str, like: _Value, channels: int | None = None, size: int | None = None) -> None:
        value = _Value(
            self.line(expression),
            like.channels if channels is None else channels,
            like.size if size is None else size,
        )
        self.values.append(value)

    def partner(self, value: _Value, a: int, same_channels: bool) -> _Value:
        """Another value (or the same) that can be added to or joined with `value`."""
        fits = [v for v in self.values if v.size == value.size and (v.channels == value.channels or not same_channels)]
        return fits[-1 - a % len(fits)]

    def model(self, opset: int, returned: Sequence[_Value]) -> ir.Model:
        kinds = {"float32": "float", "float16": "float16", "int64": "int64", "bool": "bool"}
        declared = [
            f"{kinds[str(array.dtype)]}{list(array.shape) if array.ndim else ''} {name}"
            for name, array in self.weights.items()
        ]
        inputs = ", ".join([f"{self.type}[N,{CHANNELS},{SIZE},{SIZE}] x", *declared])
        outputs = ", ".join(
            f"{self.type}[{f'n{k},c{k}' if v.size == 0 else f'n{k},c{k},h{k},w{k}'}] {v.name}"
            for k, v in enumerate(dict.fromkeys(returned))
        )
        text = f'<ir_version: 9, opset_import: ["": {opset}]>\nmain ({inputs}) => ({outputs}) {{\n'
        return from_text(text + "\n".join(self.lines) + "\n}", **self.weights)


def _norm(net: _Net, v: _Value, a: int, b: int) -> None:
    if v.size == 0 and b % 2:
        return
    parameters = [net.weight(v.channels, low=0.5 if a % 3 else -1.5, high=1.5)]
    parameters += [net.weight(v.channels), net.weight(v.channels), net.weight(v.channels, low=0.3, high=2.0)]
    epsilon = ("", "<epsilon=0.25>", "<epsilon=0.001>")[b % 3]
    net.emit(f"BatchNormalization{epsilon}({v.name}, {', '.join(parameters)})", v)


def _conv(net: _Net, v: _Value, a: int, b: int) -> None:
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


def _conv_transpose(net: _Net, v: _Value, a: int, b: int) -> None:
    if v.size:
        group = 2 if a & 1 and v.channels % 2 == 0 else 1
        bias = f", {net.weight(4)}" if b & 2 else ""
        w = net.kernel(bool(b & 4), v.channels, 4 // group, 3, 3)
        net.emit(f"ConvTranspose<group={group}, pads=[1,1,1,1]>({v.name}, {w}{bias})", v, 4)


def _matrix(net: _Net, v: _Value, a: int, b: int) -> None:
    if v.size:
        return
    w = net.kernel(False, *((5, v.channels) if a & 1 else (v.channels, 5)))
    if a & 1:
        bias = f", {net.weight(5)}" if b & 1 else ""
        net.emit(f"Gemm<transB=1>({v.name}, {w}{bias})", v, 5)
    else:
        net.emit(f"MatMul({v.name}, {w})", v, 5)


def _activation(net: _Net, v: _Value, a: int, b: int) -> None:
    kinds = ("Relu", "Sigmoid", "Tanh", "LeakyRelu<alpha=0.1>", "HardSigmoid", "Softplus", "Elu", "Softsign", "Abs")
    net.emit(f"{kinds[a % len(kinds)]}({v.name})", v)


def _affine(net: _Net, v: _Value, a: int, b: int) -> None:
    shapes = [(1,), (v.channels,), ()] if v.size == 0 else [(v.channels, 1, 1), (1,), (1, v.channels, 1, 1), ()]
    operand = net.weight(*shapes[a % len(shapes)], low=0.5, high=1.5)
    op = ("Mul", "Add", "Sub", "Div")[b % 4]
    net.emit(f"{op}({operand}, {v.name})" if b >= 8 and op != "Div" else f"{op}({v.name}, {operand})", v)


def _constants(net: _Net, v: _Value, a: int, b: int) -> None:
    """An operand that is itself computed from constants: one of them a Constant node."""
    half = 0.5 if net.type == "float" else int(np.float16(0.5).view(np.uint16))  # ONNX's text writes a float16 as bits
    node = net.line(f"Constant<value = {net.type}[1] {{{half}}}>()")
    both = net.line(f"{('Mul', 'Add')[a & 1]}({node}, {net.weight(v.channels, 1, 1) if v.size else net.weight(1)})")
    net.emit(f"{('Add', 'Mul')[b & 1]}({v.name}, {both})", v)


def _same(net: _Net, v: _Value, a: int, b: int) -> None:
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


def _reshape(net: _Net, v: _Value, a: int, b: int) -> None:
    """Into [N, C, H·W] and back: by constants, or by the shape that Shape gives."""
    if v.size:
        flat = net.line(f"Reshape({v.name}, {net.constant(np.array([0, v.channels, -1]))})")
        shape = net.line(f"Shape({v.name})") if a & 1 else net.constant(np.array([0, 0, v.size, v.size]))
        net.emit(f"Reshape({flat}, {shape})", v)


def _residual(net: _Net, v: _Value, a: int, b: int) -> None:
    """A sum or its like; what is subtracted is less than half, for nothing of x - x but the rounding is left."""
    other = net.partner(v, a, same_channels=True)
    scaled = net.line(f"Mul({other.name}, {net.weight(1, low=0.3, high=0.5)})") if b % 4 else other.name
    net.emit(f"{('Add', 'Sum', 'Sub', 'Max')[b % 4]}({v.name}, {scaled})", v)


def _concat(net: _Net, v: _Value, a: int, b: int) -> None:
    other = net.partner(v, a, same_channels=False)
    if v.channels + other.channels <= 16:
        axis = 1 if b & 1 or not v.size else -3
        net.emit(f"Concat<axis={axis}>({v.name}, {other.name})", v, v.channels + other.channels)


def _split(net: _Net, v: _Value, a: int, b: int) -> None:
    """Half of the channels by Slice; the other half may stay unread."""
    if v.channels % 2 == 0:
        half = v.channels // 2
        start = half * (a & 1)
        ends = ", ".join(net.constant(np.array([n])) for n in (start, start + half, 1))
        net.emit(f"Slice({v.name}, {ends})", v, half)


def _pool(net: _Net, v: _Value, a: int, b: int) -> None:
    if v.size:
        kind = ("MaxPool", "AveragePool", "AveragePool<count_include_pad=1, ")[a % 3]
        opened = kind if kind.endswith(", ") else f"{kind}<"
        stride = 2 if b % 5 == 4 and v.size == SIZE else 1
        attributes = f"kernel_shape=[3,3], pads=[1,1,1,1], strides=[{stride},{stride}]"
        net.emit(f"{opened}{attributes}>({v.name})", v, size=(v.size - 1) // stride + 1)


def _mask(net: _Net, v: _Value, a: int, b: int) -> None:
    """x·[x > 0] through booleans and a cast, or Where."""
    positive = net.line(f"Greater({v.name}, {net.constant(np.zeros((), net.dtype))})")
    if a & 1:
        net.emit(f"Where({positive}, {v.name}, {net.line(f'LeakyRelu<alpha=0.2>({v.name})')})", v)
    else:
        net.emit(f"Mul({v.name}, {net.line(f'Cast<to={net.code}>({positive})')})", v)


def _branch(net: _Net, v: _Value, a: int, b: int) -> None:
    """An If on the input alone, so that rounding can't turn it; both branches read values from outside."""
    size = f",{v.size},{v.size}" if v.size else ""
    kind = f"{net.type}[N,{v.channels}{size}]"
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


def _tail(net: _Net, v: _Value) -> None:
    """A classifier's end."""
    if v.size:
        pooled = net.line(f"GlobalAveragePool({v.name})")
        net.emit(f"Flatten({pooled})", v, size=0)
    _matrix(net, net.values[-1], 1, 1)
    net.emit(f"Softmax<axis=-1>({net.values[-1].name})", net.values[-1])


STEPS: dict[str, Callable[[_Net, _Value, int, int], None]] = {
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
