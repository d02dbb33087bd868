"""RNN, GRU and LSTM layers that no kernel covers, written out step by step, with ONNX's names for weights and gates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt.graph import infer_shapes
from graphopt.targets.lowering.decompose.write import Write, sizes, writer
from graphopt.targets.lowering.nodes import take_place

MAX_STEPS = 128
"""Over all directions; longer layers are refused."""
DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
BACKWARDS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
State = tuple[ir.Value, ...]


def unroll_recurrent(model: ir.Model) -> None:
    """Rewrite the layers of the main graph of `model` in place, those of a known and small number of steps."""
    changed = False
    for node in list(model.graph):
        if node.domain == "" and node.op_type in DEFAULTS:
            results = _layer(node)
            if results is not None:
                for index, result in enumerate(results[: len(node.outputs)]):
                    take_place(node, result, index)
                model.graph.remove(node, safe=True)
                changed = True
    if changed:
        infer_shapes(model)


def _layer(node: ir.Node) -> list[ir.Value] | None:
    x, w, r, b, lengths, h0, c0, p = [*node.inputs, *[None] * (8 - len(node.inputs))]
    batch_first = node.attributes.get_int("layout", 0) == 1
    shape = sizes(x)
    directions = BACKWARDS[node.attributes.get_string("direction", "forward") or "forward"]
    names = list(node.attributes.get_strings("activations", [])) or [*DEFAULTS[node.op_type]] * len(directions)
    hidden = node.attributes.get_int("hidden_size", 0)
    if shape is None or not hidden or x is None or x.dtype is None or not {*names} <= {"Sigmoid", "Tanh", "Relu"}:
        return None
    steps, batch = (shape[1], shape[0]) if batch_first else (shape[0], shape[1])
    if steps * len(directions) > MAX_STEPS or steps == 0:
        return None
    do = writer(node)
    if batch_first:
        x = do("Transpose", x, perm=[1, 0, 2])
    zeros = np.zeros((batch, hidden), x.dtype.numpy() if x.dtype else np.float32)
    inputs = [_at(do, x, t, 0) for t in range(steps)]
    masks = None if lengths is None else [_running(do, lengths, t) for t in range(steps)]
    rows: list[list[ir.Value]] = []
    finals: list[State] = []
    for d, back in enumerate(directions):
        per = len(names) // len(directions)
        step = _step(node, do, [_at(do, v, d, 0) for v in (w, r)], _taken(do, b, d), _taken(do, p, d),
                     names[d * per : (d + 1) * per], hidden)  # fmt: skip
        starts = [_start(do, value, d, batch_first, zeros) for value in (h0, c0)[: 2 if node.op_type == "LSTM" else 1]]
        state: State = tuple(starts)
        found: dict[int, ir.Value] = {}
        for t in reversed(range(steps)) if back else range(steps):
            new = step(inputs[t], state)
            if masks is not None:
                found[t] = do("Where", masks[t], new[0], zeros)
                state = tuple(do("Where", masks[t], n, old) for n, old in zip(new, state, strict=True))
            else:
                found[t], state = new[0], new
        rows.append([found[t] for t in range(steps)])
        finals.append(state)
    stack = 2 if batch_first else 1
    per_step = [_stacked(do, [row[t] for row in rows], stack - 1) for t in range(steps)]  # [D, B, H] or [B, D, H]
    y = _stacked(do, per_step, 1 if batch_first else 0)
    last = [_stacked(do, [state[k] for state in finals], stack - 1) for k in range(len(finals[0]))]
    return [y, *last]


def _step(
    node: ir.Node, do: Write, weights: list[ir.Value], b: ir.Value | None, p: ir.Value | None, names: list[str], h: int
) -> Callable[[ir.Value, State], State]:
    count, clip = GATES[node.op_type], node.attributes.get_float("clip", 0.0)
    w, r = (do("Transpose", value, perm=[1, 0]) for value in weights)
    wb, rb = (None, None) if b is None else (do("Slice", b, [k * count * h], [(k + 1) * count * h]) for k in (0, 1))
    reset_after = node.attributes.get_int("linear_before_reset", 0)

    def plus(value: ir.Value, bias: ir.Value | None) -> ir.Value:
        return value if bias is None else do("Add", value, bias)

    def part(value: ir.Value, k: int, axis: int = 1) -> ir.Value:
        return do("Slice", value, [k * h], [(k + 1) * h], [axis])

    def active(k: int, value: ir.Value) -> ir.Value:
        return do(names[k], do("Clip", value, -clip, clip) if clip else value)

    def peep(value: ir.Value, k: int, c: ir.Value) -> ir.Value:
        return value if p is None else do("Add", value, do("Mul", part(p, k, 0), c))

    def rnn(x: ir.Value, state: State) -> State:
        return (active(0, do("Add", plus(do("MatMul", x, w), wb), plus(do("MatMul", state[0], r), rb))),)

    def gru(x: ir.Value, state: State) -> State:
        (old,) = state
        own, fed = plus(do("MatMul", x, w), wb), plus(do("MatMul", old, r), rb)
        z, reset = (active(0, do("Add", part(own, k), part(fed, k))) for k in (0, 1))
        if reset_after:
            inner = do("Mul", reset, part(fed, 2))
        else:
            inner = plus(do("MatMul", do("Mul", reset, old), part(r, 2)), None if rb is None else part(rb, 2, 0))
        new = active(1, do("Add", part(own, 2), inner))
        return (do("Add", do("Mul", do("Sub", 1.0, z), new), do("Mul", z, old)),)

    def lstm(x: ir.Value, state: State) -> State:
        old, c = state
        sums = do("Add", plus(do("MatMul", x, w), wb), plus(do("MatMul", old, r), rb))
        i = active(0, peep(part(sums, 0), 0, c))
        coupled = node.attributes.get_int("input_forget", 0)
        f = do("Sub", 1.0, i) if coupled else active(0, peep(part(sums, 2), 2, c))
        c = do("Add", do("Mul", f, c), do("Mul", i, active(1, part(sums, 3))))
        o = active(0, peep(part(sums, 1), 1, c))
        return do("Mul", o, do(names[2], c)), c

    return {"RNN": rnn, "GRU": gru, "LSTM": lstm}[node.op_type]


def _at(do: Write, value: ir.Value | None, index: int, axis: int) -> ir.Value:
    return do("Gather", value, np.array(index, np.int64), axis=axis)


def _taken(do: Write, value: ir.Value | None, index: int) -> ir.Value | None:
    return None if value is None else _at(do, value, index, 0)


def _start(do: Write, value: ir.Value | None, d: int, batch_first: bool, zeros: np.ndarray) -> ir.Value:
    return do("Identity", zeros) if value is None else _at(do, value, d, 1 if batch_first else 0)


def _running(do: Write, lengths: ir.Value, t: int) -> ir.Value:
    """[batch, 1]: whether each sequence is longer than t."""
    return do("Unsqueeze", do("Greater", lengths, np.array(t, np.int32)), [1])


def _stacked(do: Write, items: list[ir.Value], axis: int) -> ir.Value:
    return do("Concat", *(do("Unsqueeze", item, [axis]) for item in items), axis=axis)
