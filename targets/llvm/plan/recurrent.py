"""LSTM, GRU and RNN layers: the input's part of the gates as one product over all steps, and `OPERATOR` for the rest.

The last state is the output's last step (the first one, of a direction that runs backwards).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph import add_constant, constant_array, derive, fresh_name
from graphopt.targets.llvm.kernels import recurrent
from graphopt.targets.llvm.kernels.recurrent import Array, Kind, Recurrent
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Dim, Twins, replace

OPERATOR = ("graphopt", "Recurrence")
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
BACKWARDS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def split(model: ir.Model, lanes: int) -> None:
    """Rewrite the layers of the main graph that the kernel covers, in place."""
    for node in list(model.graph):
        if node.op_type in DEFAULTS and node.domain == "":
            kind = _kind(node)
            if kind is not None:
                _rewrite(node, kind, lanes, model.graph)


def _kind(node: ir.Node) -> Kind | None:
    """What the kernel calls the layer; None if it doesn't cover it: peepholes, clipping, shorter sequences."""
    x, *rest = node.inputs
    weights = [constant_array(v) for v in rest[:3]]
    if x is None or x.shape is None or len(x.shape) != 3 or x.dtype != ir.DataType.FLOAT:
        return None
    if weights[0] is None or weights[1] is None or (len(rest) > 2 and rest[2] is not None and weights[2] is None):
        return None
    lengths, steps = rest[3] if len(rest) > 3 else None, x.shape[node.attributes.get_int("layout", 0)]
    given = constant_array(lengths)
    if lengths is not None and (given is None or not isinstance(steps, int) or np.any(given != steps)):
        return None
    if (
        "clip" in node.attributes
        or node.attributes.get_int("input_forget", 0)
        or (len(rest) > 6 and rest[6] is not None)
    ):
        return None
    directions = len(BACKWARDS[node.attributes.get_string("direction", "forward") or "forward"])
    names = tuple(node.attributes.get_strings("activations", [])) or DEFAULTS[node.op_type] * directions
    if node.op_type == "RNN":
        return "tanh" if set(names) == {"Tanh"} else "relu" if set(names) == {"Relu"} else None
    if names != DEFAULTS[node.op_type] * directions or "activation_alpha" in node.attributes:
        return None
    if node.op_type == "LSTM":
        return "lstm"
    return "gru-reset-after" if node.attributes.get_int("linear_before_reset", 0) else "gru"


@dataclasses.dataclass
class _Builder:
    """Puts nodes in front of the layer."""

    node: ir.Node
    graph: ir.Graph

    def __call__(
        self, op: str, inputs: Sequence[ir.Value | None], dims: Sequence[Dim], domain: str = "", **attributes: object
    ) -> ir.Value:
        output = ir.val(fresh_name(self.graph, f"{self.node.name}_{op.lower()}"), ir.DataType.FLOAT, ir.Shape(dims))
        name = fresh_name(self.graph, f"{self.node.name}_{op.lower()}")
        made = ir.node(op, inputs, attributes, domain=domain, outputs=[output], name=name)  # pyright: ignore[reportArgumentType]
        derive(made, (self.node,))
        self.graph.insert_before(self.node, made)
        return output

    def constant(self, hint: str, array: Array) -> ir.Value:
        return add_constant(
            self.graph, f"{self.node.name}_{hint}", array if array.ndim == 0 else np.ascontiguousarray(array)
        )

    def taken(self, value: ir.Value, axis: int, index: int | list[int], dims: Sequence[Dim]) -> ir.Value:
        """`value` at an index along one axis; `dims` is the result's shape."""
        return self("Gather", [value, self.constant("index", np.array(index, np.int64))], dims, axis=axis)

    def batch(self, product: ir.Value, d: int, hidden: int) -> ir.Value:
        """The shape [d, batch, hidden], the batch being the second axis of `product`."""
        whole = ir.val(fresh_name(self.graph, "shape"), ir.DataType.INT64, ir.Shape([1]))
        self.graph.insert_before(
            self.node,
            ir.node("Shape", [product], {"start": 1, "end": 2}, outputs=[whole], name=fresh_name(self.graph, "shape")),
        )
        sizes = ir.val(fresh_name(self.graph, "sizes"), ir.DataType.INT64, ir.Shape([3]))
        parts = [self.constant("size", np.array([k], np.int64)) for k in (d, hidden)]
        joined = ir.node(
            "Concat", [parts[0], whole, parts[1]], {"axis": 0}, outputs=[sizes], name=fresh_name(self.graph, "sizes")
        )
        self.graph.insert_before(self.node, joined)
        return sizes


def _rewrite(node: ir.Node, kind: Kind, lanes: int, graph: ir.Graph) -> None:
    put = _Builder(node, graph)
    backwards = BACKWARDS[node.attributes.get_string("direction", "forward") or "forward"]
    batch_first, d, gates = node.attributes.get_int("layout", 0) == 1, len(backwards), recurrent.GATES[kind]
    inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
    x, w, r = inputs[0], constant_array(inputs[1]), constant_array(inputs[2])
    assert x is not None
    assert x.shape is not None
    assert w is not None
    assert r is not None
    hidden = r.shape[2]
    b = constant_array(inputs[3])
    b = np.zeros((d, 2 * gates * hidden), np.float32) if b is None else b
    steps, n, size = (x.shape[i] for i in ((1, 0, 2) if batch_first else (0, 1, 2)))
    if batch_first:
        x = put("Transpose", [x], [steps, n, size], perm=[1, 0, 2])
    from_x, from_h = b[:, : gates * hidden].copy(), b[:, gates * hidden :]
    apart = slice(2 * hidden, None) if kind == "gru-reset-after" else slice(0, 0)  # its bias is inside the reset
    kept = from_h.copy()
    kept[:, apart] = 0
    columns = d * gates * (-(-hidden // lanes) * lanes)
    projection = recurrent.pad(w, gates, lanes).reshape(columns, -1).T
    product = put("MatMul", [x, put.constant("input", projection)], [steps, n, columns])
    shift = put.constant("shift", recurrent.pad(from_x + kept, gates, lanes).reshape(columns))
    product = put("Add", [product, shift], [steps, n, columns])
    inner = recurrent.pad(from_h[:, 2 * hidden : 3 * hidden], 1, lanes) if kind == "gru-reset-after" else np.zeros(
        (d, -(-hidden // lanes) * lanes), np.float32
    )  # fmt: skip
    states = [_state(put, v, batch_first, product, (d, n, hidden)) for v in inputs[5:7]]
    cells = len(node.outputs) > 2 and _is_used(node.outputs[2])
    shape: list[Dim] = [steps, d, *([2] if cells else []), n, hidden]
    layer = put(
        OPERATOR[1],
        [product, put.constant("recurrent", recurrent.pack(r, gates, lanes)), put.constant("inner", inner), *states],
        shape, OPERATOR[0], kind=kind, backwards=[int(b) for b in backwards], hidden=hidden, cells=int(cells),
    )  # fmt: skip
    y, c = layer, layer
    if cells:
        y, c = (put.taken(layer, 2, i, [steps, d, n, hidden]) for i in (0, 1))
    for output, value in zip(node.outputs[1:3], (y, c), strict=False):
        if _is_used(output):
            last = _last(put, value, backwards, (n, hidden))
            replace(output, put("Transpose", [last], [n, d, hidden], perm=[1, 0, 2]) if batch_first else last)
    if _is_used(node.outputs[0]):
        replace(node.outputs[0], put("Transpose", [y], [n, steps, d, hidden], perm=[2, 0, 1, 3]) if batch_first else y)
    graph.remove(node, safe=True)


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _state(
    put: _Builder, value: ir.Value | None, batch_first: bool, product: ir.Value, shape: tuple[int, Dim, int]
) -> ir.Value:
    """The state [D, N, H] that the layer starts from; zeros where none is given, as many as the batch needs."""
    d, n, hidden = shape
    if value is not None:
        return put("Transpose", [value], [d, n, hidden], perm=[1, 0, 2]) if batch_first else value
    if isinstance(n, int):
        return put.constant("zeros", np.zeros((d, n, hidden), np.float32))
    sizes = put.batch(product, d, hidden)
    zero = put.constant("zero", np.zeros(1, np.float32))
    return put("Expand", [zero, sizes], [d, n, hidden])


def _last(put: _Builder, value: ir.Value, backwards: Sequence[bool], shape: tuple[Dim, int]) -> ir.Value:
    """The state [D, N, H] after each direction's last step."""
    (n, hidden), found = shape, list[ir.Value]()
    steps, d = (value.shape or ir.Shape([]))[0], len(backwards)
    for index, back in enumerate(backwards):
        part = value if d == 1 else put.taken(value, 1, [index], [steps, 1, n, hidden])
        found.append(put.taken(part, 0, 0 if back else -1, [1, n, hidden]))
    return found[0] if d == 1 else put("Concat", found, [d, n, hidden], axis=0)


def emit(node: ir.Node, kernels: Kernels, twins: Twins) -> bool:
    """Compute an `OPERATOR` by the kernel."""
    product, shape = node.inputs[0], node.outputs[0].shape
    assert product is not None
    assert product.shape is not None
    assert shape is not None
    steps, n = (d if isinstance(d, int) else name for d, name in zip(list(product.shape)[:2], ("t", "n"), strict=True))
    kind, hidden = node.attributes.get_string("kind", ""), node.attributes.get_int("hidden", 0)
    backwards = tuple(map(bool, node.attributes.get_ints("backwards", [])))
    p = Recurrent(kind, steps, n, hidden, backwards, bool(node.attributes.get_int("cells", 0)))  # pyright: ignore[reportArgumentType]
    symbol = kernels.symbol(p, "recurrent", lambda s: recurrent.make(p, kernels.isa, kernels.parallel, s))
    called = call(symbol, [twins.first(v) for v in node.inputs if v is not None], list(shape), node)
    twins.insert(called)
    replace(node.outputs[0], called.outputs[0])
    return True
