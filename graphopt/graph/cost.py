"""What each node costs: parameters, bytes read and written, multiply-accumulates; from shapes alone.

Formulas (MACs)::

    Conv             out elements * Cin/group * kernel
    ConvTranspose    in elements * Cout/group * kernel
    MatMul, Gemm     out elements * K
    LSTM, GRU, RNN   steps * batch * directions * gates * hidden * (inputs + hidden)

and zero for all else. A symbolic dimension counts as 1, so a model with a free batch is counted for one sample;
a node with an unknown rank is listed in `ModelCost.unknown` and counts as zero. A Loop's body counts once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

Shape = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class NodeCost:
    """One node. Shapes hold ints and names of symbolic dimensions; None where the rank is unknown.

    `parameters`: elements of the constants it reads. `bytes_read` includes them.
    """

    name: str
    op: str
    inputs: list[Shape | None]
    outputs: list[Shape | None]
    parameters: int
    macs: int
    bytes_read: int
    bytes_written: int

    @property
    def intensity(self) -> float:
        """Arithmetic operations, two for each multiply-accumulate, for each byte read and written."""
        moved = self.bytes_read + self.bytes_written
        return 2 * self.macs / moved if moved else 0.0


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """All nodes, subgraphs included, and the totals; a constant that several nodes read counts once in these."""

    nodes: list[NodeCost]
    parameters: int
    weight_bytes: int
    macs: int
    unknown: list[str]
    """Nodes with a value of unknown rank or type: their MACs and bytes are counted short."""


def cost(model: ir.Model) -> ModelCost:
    """The cost of every node of `model`, whose shapes must have been inferred, and of the whole."""
    nodes: list[NodeCost] = []
    unknown: list[str] = []
    constants: dict[ir.Value, ir.TensorProtocol] = {}
    for node in model.graph.all_nodes():
        own = {value: tensor for value in node.inputs if value is not None and (tensor := constant(value)) is not None}
        constants.update(own)
        read = dict.fromkeys(value for value in node.inputs if value is not None)
        written = [value for value in node.outputs if value.name]
        if any(value_bytes(value) is None for value in [*read, *written]):
            unknown.append(node.name or "")
        nodes.append(
            NodeCost(
                name=node.name or "",
                op=f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type,
                inputs=[None if value is None else _shape(value) for value in node.inputs],
                outputs=[_shape(value) for value in node.outputs],
                parameters=sum(int(tensor.size) for tensor in own.values()),
                macs=macs(node),
                bytes_read=sum(value_bytes(value) or 0 for value in read),
                bytes_written=sum(value_bytes(value) or 0 for value in written),
            )
        )
    return ModelCost(
        nodes=nodes,
        parameters=sum(int(tensor.size) for tensor in constants.values()),
        weight_bytes=sum(tensor.nbytes for tensor in constants.values()),
        macs=sum(node.macs for node in nodes),
        unknown=unknown,
    )


def totals(model: ir.Model) -> dict[str, int]:
    """Nodes, parameters, weight bytes and multiply-accumulates of a model: those of `cost`, without an entry a node."""
    nodes = list(model.graph.all_nodes())
    constants = {v: t for node in nodes for v in node.inputs if v is not None and (t := constant(v)) is not None}
    return {
        "nodes": len(nodes),
        "parameters": sum(int(tensor.size) for tensor in constants.values()),
        "weight_bytes": sum(tensor.nbytes for tensor in constants.values()),
        "macs": sum(map(macs, nodes)),
    }


def macs(node: ir.Node) -> int:
    """Multiply-accumulates of one node; 0 when its shapes are not known."""
    count = _MACS.get(node.op_type)
    return 0 if count is None else count(node)


def _dims(value: ir.Value | None) -> list[int] | None:
    """Sizes with symbolic dimensions as 1; None when the rank is unknown or there is no value."""
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else 1 for dim in value.shape]


def _conv(node: ir.Node, weight: int = 1) -> int:
    out, kernel = _dims(node.outputs[0]), _dims(node.inputs[weight])
    return 0 if out is None or kernel is None else math.prod(out) * math.prod(kernel[1:])


def _conv_transpose(node: ir.Node) -> int:
    x, kernel = _dims(node.inputs[0]), _dims(node.inputs[1])
    return 0 if x is None or kernel is None else math.prod(x) * math.prod(kernel[1:])


def _matmul(node: ir.Node) -> int:
    out, left = _dims(node.outputs[0]), _dims(node.inputs[0])
    if out is None or not left:
        return 0
    inner = left[0] if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) else left[-1]
    return math.prod(out) * inner


def _recurrent(node: ir.Node) -> int:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[node.op_type]
    x, recurrence = _dims(node.inputs[0]), _dims(node.inputs[2])
    if x is None or recurrence is None:
        return 0
    directions, _, hidden = recurrence
    return x[0] * x[1] * directions * gates * hidden * (x[2] + hidden)


_MACS: dict[str, Callable[[ir.Node], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": lambda node: _conv(node, weight=3),
    "ConvTranspose": _conv_transpose,
    "Gemm": _matmul,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}


def constant(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or a Constant node; its data is not read."""
    if value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    producer = value.producer()
    return None if producer is None or producer.op_type != "Constant" else ir.convenience.get_const_tensor(value)


def _shape(value: ir.Value) -> Shape | None:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else str(dim.value or "?") for dim in value.shape)


def value_bytes(value: ir.Value) -> int | None:
    """Bytes of a tensor value, sub-byte types packed; None when rank or type is unknown."""
    dims: Sequence[int] | None = _dims(value)
    if dims is None or value.dtype is None or value.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    return math.ceil(math.prod(dims) * value.dtype.bitwidth / 8)
