"""What is in a model: operators, shapes, parameters, multiply-accumulates, bytes, memory, and more on request."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

from graphopt.graph.cost import ModelCost, NodeCost, constant, cost
from graphopt.inspect.built import Built
from graphopt.inspect.memory import live_bytes
from graphopt.inspect.patterns import Pattern, patterns
from graphopt.inspect.quantization import Quantization, State, quantization
from graphopt.inspect.weights import WeightStats, weight_stats

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir

READ_UP_TO = 1 << 28
"""Bytes of weights up to which `inspect` reads them without being asked."""
ASK_UP_TO = 2000
"""Nodes up to which `inspect` asks passes without being told to."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of the model: dtype by ONNX name; dimensions as ints or symbolic names."""

    name: str
    dtype: str
    shape: list[int | str] | None


@dataclasses.dataclass(frozen=True)
class Node(NodeCost):
    """What a node costs (`NodeCost`), the bytes of all values that exist while it runs, and what it computes on."""

    live_bytes: int
    state: State


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over nodes; `parameters` and `weight_bytes` count each constant once.

    `intensity`: arithmetic operations (two for each MAC) for each byte read and written. `peak_bytes`: most bytes of
    values between nodes that exist at one time, which is while `peak_node` runs. `zeros`: the share of zeros in the
    constants, None where weights were not read. Symbolic dimensions count as 1.
    """

    nodes: int
    parameters: int
    weight_bytes: int
    macs: int
    bytes_read: int
    bytes_written: int
    intensity: float
    peak_bytes: int
    peak_node: str | None
    zeros: float | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `inspect` found. `ops`: operator -> count, most frequent first.

    `unknown`: nodes whose shapes are not all known, so that the totals fall short by them. `weights` and `patterns`
    are None where they were not asked for.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    opsets: dict[str, int]
    totals: Totals
    ops: dict[str, int]
    quantization: Quantization
    nodes: list[Node]
    unknown: list[str]
    weights: list[WeightStats] | None
    patterns: list[Pattern] | None
    built: Built | None = None
    """Of an artifact: how it was made."""

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        found = dataclasses.asdict(self)
        for row, node in zip(found["nodes"], self.nodes, strict=True):
            row["intensity"] = node.intensity
        return found


def inspect(model: ir.Model, weights: bool | None = None, ask: bool | None = None) -> Summary:
    """Summarise `model`, whose shapes must have been inferred (as `graphopt.graph.load` does).

    `weights`: read all weights for their statistics; by default where they are at most `READ_UP_TO` bytes.
    `ask`: run lossless passes on a copy to see what they would do; by default for models of at most `ASK_UP_TO` nodes
    and `READ_UP_TO` bytes.
    """
    spent = cost(model)
    small = spent.weight_bytes <= READ_UP_TO
    stats = weight_stats(model) if (small if weights is None else weights) else None
    asked = patterns(model) if (small and len(spent.nodes) <= ASK_UP_TO if ask is None else ask) else None
    whole, states = quantization(model)
    nodes = _nodes(model, spent, states)
    counts = Counter(node.op for node in nodes)
    read = (value for node in model.graph.all_nodes() for value in node.inputs if value is not None)
    return Summary(
        inputs=[_tensor(value) for value in model.graph.inputs],
        outputs=[_tensor(value) for value in model.graph.outputs],
        opsets=dict(model.graph.opset_imports),
        totals=totals(nodes, read, stats),
        ops=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        quantization=whole,
        nodes=nodes,
        unknown=spent.unknown,
        weights=stats,
        patterns=asked,
    )


def _nodes(model: ir.Model, spent: ModelCost, states: dict[ir.Node, State]) -> list[Node]:
    live = live_bytes(model.graph)
    rows = zip(spent.nodes, model.graph.all_nodes(), strict=True)
    return [Node(**vars(row), live_bytes=live[node], state=states[node]) for row, node in rows]


def totals(nodes: Sequence[Node], read: Iterable[ir.Value], weights: Sequence[WeightStats] | None) -> Totals:
    """The totals of `nodes`, which read the values `read`, with the statistics of their weights."""
    tensors = [tensor for value in dict.fromkeys(read) if (tensor := constant(value)) is not None]
    peak = max(nodes, key=lambda node: node.live_bytes, default=None)
    moved = sum(node.bytes_read + node.bytes_written for node in nodes)
    macs = sum(node.macs for node in nodes)
    elements = sum(tensor.size for tensor in tensors)
    zeros = None if weights is None else sum(w.zeros * _size(w) for w in weights)
    return Totals(
        nodes=len(nodes),
        parameters=int(elements),
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        macs=macs,
        bytes_read=sum(node.bytes_read for node in nodes),
        bytes_written=sum(node.bytes_written for node in nodes),
        intensity=2 * macs / moved if moved else 0.0,
        peak_bytes=0 if peak is None else peak.live_bytes,
        peak_node=None if peak is None else peak.name,
        zeros=None if zeros is None else zeros / elements if elements else 0.0,
    )


def _size(stats: WeightStats) -> int:
    count = 1
    for size in stats.shape:
        count *= size
    return count


def _tensor(value: ir.Value) -> Tensor:
    shape = None if value.shape is None else [d if isinstance(d, int) else str(d.value or "?") for d in value.shape]
    return Tensor(str(value.name), "?" if value.dtype is None else value.dtype.name, shape)
