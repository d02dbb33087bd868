"""What follows a convolution or a dense layer and can be done before its result is stored."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array
from graphopt.targets.llvm.kernels.epilogue import Activation, Epilogue
from graphopt.targets.llvm.kernels.formula import Formula
from graphopt.targets.llvm.plan.formulas import region


@dataclasses.dataclass(frozen=True)
class Tail:
    """The nodes taken along in order (the main node first), the value they end in, and what they do."""

    nodes: tuple[ir.Node, ...]
    value: ir.Value
    epilogue: Epilogue
    residual: ir.Value | None
    bias: np.ndarray[Any, Any] | None = None  # of a MatMul, [columns]

    @property
    def last(self) -> ir.Node:
        """Where the kernel must stand: every input is there by then."""
        return self.nodes[-1]


def tail(node: ir.Node, position: dict[ir.Node, int], taken: set[ir.Node]) -> Tail:
    """The longest tail of `node`: activations, and at most one addition of another value; first a bias of MatMul.

    Of two producers of an addition the later one takes it along. `position` gives the order of nodes; those `taken` are
    in another tail already.
    """
    nodes, value = [node], node.outputs[0]
    residual: ir.Value | None = None
    first: list[Activation | Formula] = []
    then: list[Activation | Formula] = []
    bias = _bias(node)
    if bias is not None:
        nodes.append(next(iter(value.uses())).node)
        value = nodes[-1].outputs[0]
    while True:
        found = activation_of(value)
        if found is not None and not taken.intersection(found[1]):
            (first if residual is None else then).append(found[0])
            nodes.extend(found[1])
            value = found[1][-1].outputs[0]
            continue
        add = None if residual is not None else _addition(value, node, position, taken)
        if add is None:
            break
        residual = add.inputs[1] if add.inputs[0] is value else add.inputs[0]
        nodes.append(add)
        value = add.outputs[0]
    return Tail(tuple(nodes), value, Epilogue(tuple(first), residual is not None, tuple(then)), residual, bias)


def _only_users(value: ir.Value, count: int) -> list[ir.Node] | None:
    uses = value.uses()
    if value.is_graph_output() or len(uses) != count:
        return None
    return [use.node for use in uses]


def activation_of(value: ir.Value) -> tuple[Activation | Formula, list[ir.Node]] | None:
    """An activation of `value` and its nodes: one node, or several that read it, such as x * sigmoid(x)."""
    users = _only_users(value, 1)
    if users is not None:
        alone = simple(users[0], value)
        return None if alone is None else (alone, users)
    return region(value, simple)


def simple(node: ir.Node, value: ir.Value) -> Activation | None:
    """What `node` does to `value`, if that is an activation of it alone."""
    if node.domain != "" or (node.inputs[0] is not value and node.op_type not in ("Add", "Sub", "Mul")):
        return None
    match node.op_type:
        case "Relu":
            return Activation("relu")
        case "Sigmoid":
            return Activation("sigmoid")
        case "Tanh":
            return Activation("tanh")
        case "HardSwish":
            return Activation("hard-swish")
        case "LeakyRelu":
            return Activation("leaky-relu", a=_float(node, "alpha", 0.01))
        case "HardSigmoid":
            a, b = _float(node, "alpha", 0.2), _float(node, "beta", 0.5)
            return Activation("hard-sigmoid", a=1 / 6 if abs(a - 1 / 6) < 1e-6 else a, b=b)
        case "Clip":
            low, high = (_scalar(node, 1, -3.4028235e38), _scalar(node, 2, 3.4028235e38))
            return None if low is None or high is None else Activation("clip", a=low, b=high)
        case "Add" | "Sub" | "Mul" | "Div":
            return _affine(node, 0 if node.inputs[1] is value else 1)
        case _:
            return None


def _affine(node: ir.Node, index: int) -> Activation | None:
    """Arithmetic with a constant scalar, which is the operand at `index`."""
    array = constant_array(node.inputs[index])
    shape = node.outputs[0].shape
    if array is None or array.size != 1 or shape is None or array.ndim > len(shape):
        return None
    c = float(array.reshape(-1)[0])
    match node.op_type:
        case "Add":
            return Activation("affine", 1.0, c)
        case "Sub":
            return Activation("affine", 1.0, -c) if index == 1 else Activation("affine", -1.0, c)
        case "Mul":
            return Activation("affine", c, 0.0)
        case _:
            return None if c == 0.0 or index == 0 else Activation("affine", 1.0 / c, 0.0)


def _float(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.as_float())


def _scalar(node: ir.Node, index: int, default: float) -> float | None:
    """A constant scalar input; `default` when it is not given, None when it is not constant."""
    if len(node.inputs) <= index or node.inputs[index] is None:
        return default
    array = constant_array(node.inputs[index])
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def _addition(value: ir.Value, node: ir.Node, position: dict[ir.Node, int], taken: set[ir.Node]) -> ir.Node | None:
    """An Add of `value` and another computed value of the same shape, made before `node` in the graph's order."""
    users = _only_users(value, 1)
    if users is None or users[0].domain != "" or users[0] in taken:
        return None
    add = users[0]
    if add.op_type not in ("Add", "Sum") or len(add.inputs) != 2:
        return None
    other = add.inputs[1] if add.inputs[0] is value else add.inputs[0]
    if other is None or other is value or constant_array(other) is not None:
        return None
    if other.shape is None or value.shape is None or other.shape != value.shape or other.dtype != value.dtype:
        return None
    producer = other.producer()
    if producer is not None and position.get(producer, -1) > position[node]:
        return None
    return add


def _bias(node: ir.Node) -> np.ndarray[Any, Any] | None:
    """The constant that the only user of a MatMul adds along the last axis."""
    value = node.outputs[0]
    users = _only_users(value, 1)
    if node.op_type != "MatMul" or users is None or users[0].op_type != "Add" or users[0].domain != "":
        return None
    others = [constant_array(v) for v in users[0].inputs if v is not value]
    array = others[0] if others else None
    columns = None if value.shape is None else value.shape[-1]
    if array is None or not isinstance(columns, int) or users[0].outputs[0].shape != value.shape:
        return None
    if array.size not in (1, columns) or (array.size > 1 and array.shape[-1] != columns):
        return None
    return np.broadcast_to(array.reshape(-1), (columns,)).astype(np.float32)
