"""A summary as text for people, and its nodes as CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import TYPE_CHECKING

from graphopt.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graphopt.inspect.built import Built
    from graphopt.inspect.patterns import Pattern
    from graphopt.inspect.summary import Node, Summary, Tensor
    from graphopt.inspect.weights import WeightStats

SHOWN = 5
"""Weights with outliers, and reasons of a pass, that the text shows."""
FAR_SHOWN = 10.0
"""Distance from the mean, in standard deviations, from which the text shows a weight."""


def as_text(summary: Summary) -> str:
    """Lines for the whole, then a table of nodes; stable for equal models."""
    rows = [_row(node, summary.totals.macs) for node in summary.nodes]
    return "\n".join(map(printable, [*_head(summary), "", *_table(rows), *_tail(summary)]))


def as_csv(summary: Summary) -> str:
    """A row for each node under a heading; shapes as ``1x3xN``, several apart by spaces."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    numbers = ["parameters", "macs", "bytes_read", "bytes_written", "intensity", "live_bytes", "state"]
    table.writerow(["name", "op", "inputs", "outputs", *numbers])
    for node in summary.nodes:
        shapes = [" ".join(_plain(shape) for shape in some) for some in (node.inputs, node.outputs)]
        table.writerow([_safe(node.name), node.op, *shapes, *(getattr(node, name) for name in numbers)])
    return out.getvalue()


def _safe(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name[:1] in ("=", "+", "-", "@", "\t", "\r") else name


def _head(summary: Summary) -> Iterator[str]:
    t = summary.totals
    yield from (f"input   {_signature(value)}" for value in summary.inputs)
    yield from (f"output  {_signature(value)}" for value in summary.outputs)
    yield "opset   " + ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in summary.opsets.items())
    yield f"total   {t.nodes} nodes, {t.parameters:,} parameters in {t.weight_bytes:,} bytes, {t.macs:,} MACs"
    yield (
        f"moved   {t.bytes_read:,} bytes read, {t.bytes_written:,} written, "
        f"{t.intensity:.3g} operations for each byte of them"
    )
    yield f"memory  {t.peak_bytes:,} bytes between nodes at the most, at {t.peak_node}"
    if t.zeros is not None:
        yield f"zeros   {t.zeros:.1%} of the parameters"
    yield f"types   {_types(summary)}"
    yield "ops     " + ", ".join(f"{op} {count}" for op, count in summary.ops.items())


def _types(summary: Summary) -> str:
    q = summary.quantization
    weights = ", ".join(f"{name.lower()} {nbytes:,} bytes" for name, nbytes in q.weights.items())
    if q.state == "float":
        return f"nothing quantized; weights: {weights or 'none'}"
    work = sum(q.macs.values()) or 1
    shares = ", ".join(f"{state} {macs / work:.0%}" for state, macs in q.macs.items())
    return f"quantized ({q.state}; MACs: {shares}); weights: {weights}"


def _tail(summary: Summary) -> Iterator[str]:
    if summary.unknown:
        yield from ["", f"shapes not known, counted short: {', '.join(summary.unknown)}"]
    yield ""
    if summary.built is not None:
        yield from _built(summary.built)
    if summary.weights is None:
        yield "weights not read: --weights reads them (ranges, zeros, outliers)"
    else:
        yield from _weights(summary.weights)
    if summary.patterns is None:
        yield "passes not asked: --patterns asks them what they would do"
    else:
        for one in summary.patterns:
            yield from _pattern(one)


def _built(built: Built) -> Iterator[str]:
    yield f"compiled for {built.target} after {', '.join(built.passes) or 'no passes'}"
    for nodes in sorted(built.together, key=len, reverse=True)[:SHOWN]:
        yield f"computed together: {', '.join(nodes)}"
    if len(built.together) > SHOWN:
        yield f"{len(built.together) - SHOWN} more sets of nodes computed together; --json has all"
    reasons = Counter(built.left.values())
    for reason, times in reasons.most_common(SHOWN):
        node = next(name for name, why in built.left.items() if why == reason)
        yield f"{node}{f' and {times - 1} more' if times > 1 else ''}: {reason}"
    if built.tensor_core_share is not None:
        yield f"{built.tensor_core_share:.1%} of the multiply-adds on tensor cores"
    for gpu, milliseconds in built.estimates.items():
        yield f"{gpu}: at least {milliseconds:.3g} ms, an estimate from its data sheet, not measured"


def _weights(weights: Sequence[WeightStats]) -> Iterator[str]:
    broken = [w for w in weights if w.nonfinite]
    yield from (f"weight {w.name}: {w.nonfinite} values are infinite or NaN" for w in broken)
    far = sorted((w for w in weights if w.reach >= FAR_SHOWN), key=lambda w: -w.reach)
    for w in far[:SHOWN]:
        yield (
            f"weight {w.name}: from {w.least:.3g} to {w.greatest:.3g}, {w.outliers} outliers, "
            f"the farthest at {w.reach:.0f} standard deviations"
        )
    if len(far) > SHOWN:
        yield f"{len(far) - SHOWN} more weights with values beyond {FAR_SHOWN:.0f} standard deviations; --json has all"


def _pattern(one: Pattern) -> Iterator[str]:
    if one.failed is not None:
        yield f"{one.pass_name} can't tell: {one.failed}"
    if one.found:
        where = ", ".join(change.node for change in one.found[:SHOWN])
        more = f" and {len(one.found) - SHOWN} more" if len(one.found) > SHOWN else ""
        yield f"{one.pass_name} would apply to {where}{more}"
    reasons = Counter(skip.reason for skip in one.missed)
    for reason, times in reasons.most_common(SHOWN):
        node = next(skip.node for skip in one.missed if skip.reason == reason)
        more = f" and {times - 1} more" if times > 1 else ""
        yield f"{one.pass_name} would leave {node}{more}: {reason}"
    if len(reasons) > SHOWN:
        yield f"{one.pass_name}: {len(reasons) - SHOWN} further reasons; --json has all"


def _signature(value: Tensor) -> str:
    return f"{value.name}: {value.dtype.lower()}{_dims(value.shape)}"


def _dims(shape: Sequence[int | str] | None) -> str:
    return "[?]" if shape is None else f"[{','.join(map(str, shape))}]"


def _plain(shape: Sequence[int | str] | None) -> str:
    return "?" if shape is None else "x".join(map(str, shape)) or "scalar"


def _row(node: Node, macs: int) -> list[str]:
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
        f"{node.intensity:.3g}" if node.macs else "",
        f"{node.live_bytes:,}",
        "" if node.state == "float" else node.state,
    ]


def _table(rows: list[list[str]]) -> list[str]:
    """Rows under a heading, the first three columns to the left, numbers to the right."""
    heading = ["node", "op", "output", "parameters", "MACs", "share", "read", "written", "ops/byte", "live", "state"]
    rows = [heading, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < 3 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
