"""Channel shuffles, which exporters write as Reshape, Transpose, Reshape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.targets.llvm.kernels import shuffle
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Twins, image
from graphopt.targets.llvm.plan.pointwise import only_user


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """The three nodes, what they shuffle, and how they see its channels: `groups` of `each`, then the other way."""

    nodes: tuple[ir.Node, ir.Node, ir.Node]
    source: ir.Value
    groups: int
    each: int

    @property
    def value(self) -> ir.Value:
        """The result."""
        return self.nodes[-1].outputs[0]


def find(nodes: Sequence[ir.Node]) -> dict[ir.Node, Shuffle]:
    """The shuffle that ends at a node."""
    found = [_starting(node) for node in nodes]
    return {shuffled.nodes[-1]: shuffled for shuffled in found if shuffled is not None}


def _starting(node: ir.Node) -> Shuffle | None:
    """Reshape to (N, groups, each, H, W), Transpose of the middle two, Reshape back."""
    if node.op_type != "Reshape" or node.domain != "" or node.inputs[0] is None:
        return None
    source, apart = node.inputs[0], node.outputs[0].shape
    if image(source) is None or source.shape is None or len(source.shape) != 4 or apart is None or len(apart) != 5:
        return None
    if source.dtype != ir.DataType.FLOAT:
        return None
    n, groups, each, *size = apart
    if not isinstance(groups, int) or not isinstance(each, int) or [n, groups * each, *size] != list(source.shape):
        return None
    transpose = only_user(node.outputs[0])
    if transpose is None or transpose.op_type != "Transpose" or transpose.domain != "":
        return None
    back = only_user(transpose.outputs[0])
    if back is None or back.op_type != "Reshape" or back.domain != "" or back.outputs[0].shape != source.shape:
        return None
    if list(transpose.attributes.get_ints("perm", [])) != [0, 2, 1, 3, 4]:
        return None
    return Shuffle((node, transpose, back), source, groups, each)


def emit(found: Shuffle, kernels: Kernels, twins: Twins) -> None:
    """Put the kernel call in front of the last node, and make its result the twin of that node's."""
    shape = image(found.value)
    assert shape is not None
    rows, groups, each = (shape.batch, shape.h, shape.w), found.groups, found.each
    symbol = kernels.symbol(
        ("shuffle", rows, groups, each), "shuffle", lambda s: shuffle.make(rows, groups, each, kernels.parallel, s)
    )
    called = call(symbol, [twins.last(found.source)], shape.last, found.nodes[-1])
    twins.insert(called)
    twins.set(found.value, called.outputs[0])
