"""Attention as exporters write it, softmax(scale Q K' + mask) V, onto one kernel, with the transposes around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from graphopt.graph import used_once
from graphopt.targets.llvm.kernels import attention
from graphopt.targets.llvm.kernels.attention import Attention, Operand
from graphopt.targets.llvm.plan.formulas import scalar
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, replace

Dims = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class Match:
    """The nodes that the kernel replaces in order, its inputs, and the value it computes."""

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    value: ir.Value
    problem: Attention


def find(nodes: Iterable[ir.Node]) -> dict[ir.Node, Match]:
    """Every attention in the graph by the last of its nodes."""
    matches = [match for node in nodes if (match := _match(node)) is not None]
    return {match.nodes[-1]: match for match in matches}


def emit(match: Match, kernels: Kernels, twins: Twins) -> None:
    """Put the kernel call before the node that the walk is at, and its result in place of the match's."""
    symbol = kernels.symbol(
        ("attention", match.problem), "attention",
        lambda s: attention.make(match.problem, kernels.isa, kernels.parallel, s),
    )  # fmt: skip
    inputs, p = [twins.first(v) for v in match.inputs], match.problem
    assert inputs[0].shape is not None
    sizes = {
        **dict(zip(p.q.layout, inputs[0].shape, strict=True)),
        "d": p.dv,
    }  # symbols by the names of the first input
    called = call(symbol, inputs, [sizes[axis] for axis in p.y.layout], match.nodes[-1])
    twins.insert(called)
    replace(match.value, called.outputs[0])


def _match(node: ir.Node) -> Match | None:
    """The attention whose product with V is `node`."""
    if not _is(node, "MatMul"):
        return None
    probabilities, v = node.inputs
    taken = [node]
    softmax = _through_reshapes(probabilities, taken)
    if softmax is None or not _is(softmax, "Softmax"):
        return None
    if softmax.attributes.get_int("axis", -1) not in (-1, _rank(softmax.inputs[0]) - 1):
        return None
    taken.append(softmax)
    producer = _through_reshapes(softmax.inputs[0], taken)
    scores = None if producer is None else producer.outputs[0]
    mask: ir.Value | None = None
    if producer is not None and _is(producer, "Add"):
        left, right = producer.inputs
        scores, mask = (left, right) if _is_scores(left) else (right, left)
        taken.append(producer)
    scores, after = _scaled(scores, taken)
    producer = None if scores is None or not used_once(scores) else scores.producer()
    if producer is None or not _is(producer, "MatMul"):
        return None
    taken.append(producer)
    q, before = _scaled(producer.inputs[0], taken)
    return _problem(q, producer.inputs[1], v, mask, after * before, node, taken)


def _scaled(value: ir.Value | None, taken: list[ir.Node]) -> tuple[ir.Value | None, float]:
    """What `value` is a constant multiple of, and the factor."""
    node = None if value is None or not used_once(value) else value.producer()
    if node is None or node.op_type not in ("Mul", "Div") or node.domain != "":
        return value, 1.0
    factor = scalar(node.inputs[1])
    if not factor or node.inputs[0] is None or node.inputs[0].shape != node.outputs[0].shape:
        return value, 1.0
    taken.append(node)
    return node.inputs[0], factor if node.op_type == "Mul" else 1.0 / factor


def _problem(
    q: ir.Value | None, k: ir.Value | None, v: ir.Value | None, mask: ir.Value | None, scale: float, last: ir.Node,
    taken: list[ir.Node],
) -> Match | None:  # fmt: skip
    shapes = [_dims(value) for value in (q, k, v)]
    if q is None or k is None or v is None or any(s is None or len(s) != 4 for s in shapes):
        return None
    (n, heads, tq, dk), ks, vs = (s for s in shapes if s is not None)
    tk, dv = vs[2], vs[3]
    if not isinstance(heads, int) or not isinstance(dk, int) or not isinstance(dv, int):
        return None
    if ks != (n, heads, dk, tk) or vs != (n, heads, tk, dv):
        return None
    repeats = None
    if mask is not None:
        full, own = (n, heads, tq, tk), _dims(mask)
        if own is None or len(own) > 4 or mask.dtype != ir.DataType.FLOAT:
            return None
        if len(own) != 4 or any(size not in (1, whole) for size, whole in zip(own, full, strict=True)) or own[3] == 1:
            return None
        repeats = own
    (q, q_layout), (k, k_layout), (v, v_layout) = (
        _stored(value, axes) for value, axes in ((q, "nhtd"), (k, "nhdt"), (v, "nhtd"))
    )
    value, y_layout = last.outputs[0], "nhtd"
    users = [use.node for use in value.uses()]
    nodes = list(reversed(taken))
    turned = users[0].attributes.get_ints("perm", []) if used_once(value) and _is(users[0], "Transpose") else ()
    if tuple(turned) == (0, 2, 1, 3):
        nodes.append(users[0])
        value, y_layout = users[0].outputs[0], "nthd"
    short = {name: f"d{i}" for i, name in enumerate(dict.fromkeys(d for d in (n, tq, tk) if isinstance(d, str)))}
    n, tq, tk = (short[d] if isinstance(d, str) else d for d in (n, tq, tk))
    if repeats is not None:
        repeats = tuple(short[d] if isinstance(d, str) else d for d in repeats)
    problem = Attention(
        n, heads, tq, tk, dk, dv, scale,
        Operand(q_layout), Operand(k_layout), Operand(v_layout), Operand(y_layout), repeats,
    )  # fmt: skip
    inputs = (q, k, v) if mask is None else (q, k, v, mask)
    return Match(tuple(nodes), inputs, value, problem)


def _is(node: ir.Node | None, op: str) -> bool:
    return node is not None and node.op_type == op and node.domain == ""


def _rank(value: ir.Value | None) -> int:
    return -1 if value is None or value.shape is None else len(value.shape)


def _dims(value: ir.Value | None) -> Dims | None:
    """Sizes, symbolic ones by name; None where one is not even named."""
    if value is None or value.shape is None or value.dtype != ir.DataType.FLOAT:
        return None
    dims = [d if isinstance(d, int) else d.value for d in value.shape]
    return None if None in dims else tuple(d if isinstance(d, int) else str(d) for d in dims)


def _is_scores(value: ir.Value | None) -> bool:
    """Whether `value` is a product, maybe scaled: the other operand of the addition is then the mask."""
    inner, _ = _scaled(value, [])
    return inner is not None and _is(inner.producer(), "MatMul")


def _through_reshapes(value: ir.Value | None, taken: list[ir.Node]) -> ir.Node | None:
    """What computes `value`, behind reshapes that keep the last axis; nothing else may read what lies between."""
    while value is not None and used_once(value):
        node = value.producer()
        if node is None or node.op_type not in ("Reshape", "Flatten") or node.domain != "":
            return node
        before, after = _dims(node.inputs[0]), _dims(value)
        if before is None or after is None or before[-1] != after[-1]:
            return None
        taken.append(node)
        value = node.inputs[0]
    return None


def _stored(value: ir.Value, axes: str) -> tuple[ir.Value, str]:
    """`value` with the given axes, or what it is a transpose of, and the axes of that."""
    node = value.producer()
    if not _is(node, "Transpose") or node is None or node.inputs[0] is None:
        return value, axes
    perm: Sequence[int] = node.attributes.get_ints("perm", [])
    if len(perm) != 4:
        return value, axes
    return node.inputs[0], "".join(axes[list(perm).index(i)] for i in range(4))
