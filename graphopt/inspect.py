"""What is in a model: operators, shapes, parameters, multiply-accumulates, bytes. Weights are not read."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

from graphopt.graph.cost import NodeCost, cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of the model: dtype by ONNX name; dimensions as ints or symbolic names."""

    name: str
    dtype: str
    shape: list[int | str] | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `inspect` found; JSON-able through `dataclasses.asdict`, a listing through `str`.

    `ops`: operator -> count, most frequent first. `parameters`, `weight_bytes`: constants, each once.
    `macs`: multiply-accumulates of one run, symbolic dimensions counted as 1.
    `unknown`: nodes whose shapes are not all known, so that the totals fall short by them.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    opsets: dict[str, int]
    node_count: int
    ops: dict[str, int]
    parameters: int
    weight_bytes: int
    macs: int
    nodes: list[NodeCost]
    unknown: list[str]

    def __str__(self) -> str:
        lines = [
            *(f"input   {_signature(value)}" for value in self.inputs),
            *(f"output  {_signature(value)}" for value in self.outputs),
            "opset   " + ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in self.opsets.items()),
            f"total   {self.node_count} nodes, {self.parameters:,} parameters in {self.weight_bytes:,} bytes, "
            f"{self.macs:,} MACs",
            "ops     " + ", ".join(f"{op} {count}" for op, count in self.ops.items()),
            "",
            *_table([_row(node, self.macs) for node in self.nodes]),
        ]
        if self.unknown:
            lines += ["", f"shapes not known, counted short: {', '.join(self.unknown)}"]
        return "\n".join(lines)


def inspect(model: ir.Model) -> Summary:
    """Summarise `model`, whose shapes must have been inferred (as `graphopt.graph.load` does)."""
    spent = cost(model)
    counts = Counter(node.op for node in spent.nodes)
    return Summary(
        inputs=[_tensor(value) for value in model.graph.inputs],
        outputs=[_tensor(value) for value in model.graph.outputs],
        opsets=dict(model.graph.opset_imports),
        node_count=len(spent.nodes),
        ops=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        parameters=spent.parameters,
        weight_bytes=spent.weight_bytes,
        macs=spent.macs,
        nodes=spent.nodes,
        unknown=spent.unknown,
    )


def _tensor(value: ir.Value) -> Tensor:
    shape = None if value.shape is None else [d if isinstance(d, int) else str(d.value or "?") for d in value.shape]
    return Tensor(str(value.name), "?" if value.dtype is None else value.dtype.name, shape)


def _signature(value: Tensor) -> str:
    return f"{value.name}: {value.dtype.lower()}{_dims(value.shape)}"


def _dims(shape: Sequence[int | str] | None) -> str:
    return "[?]" if shape is None else f"[{','.join(map(str, shape))}]"


def _row(node: NodeCost, macs: int) -> list[str]:
    share = f"{100 * node.macs / macs:.1f}%" if macs and node.macs else ""
    return [
        node.name,
        node.op,
        " ".join(_dims(shape) for shape in node.outputs),
        f"{node.parameters:,}",
        f"{node.macs:,}",
        share,
        f"{node.bytes_read:,}",
        f"{node.bytes_written:,}",
    ]


def _table(rows: list[list[str]]) -> list[str]:
    """Rows under a heading, the first three columns to the left, numbers to the right."""
    rows = [["node", "op", "output", "parameters", "MACs", "share", "read", "written"], *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < 3 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
