"""The account of a pipeline for people: what each pass did, and what it left alone and why."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import typer

from graphopt.cli.show import count, print_table, size

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.pipeline.driver import Result, Step


def print_steps(before: ir.Model, result: Result) -> None:
    """A row a pass, the totals before and after, and the reasons for what was left alone."""
    from graphopt.graph.cost import totals

    rows: list[list[str]] = []
    for step in result.steps:
        error = step.facts.get("relative_error")
        rows.append(
            [
                step.pass_.name,
                _applied(step),
                str(len(step.report.skipped)),
                f"{step.seconds * 1e3:.0f} ms",
                step.pass_.preserves.kind,
                "" if error is None else f"{error:.1e}",
            ]
        )
    if rows:
        print_table(["pass", "applied", "left", "time", "keeps", "error"], rows)
    a, b = totals(before), totals(result.model)
    print_table(
        ["", "nodes", "parameters", "weights", "MACs"],
        [
            [name, str(t["nodes"]), count(t["parameters"]), size(t["weight_bytes"]), count(t["macs"])]
            for name, t in (("before", a), ("after", b))
        ],
    )
    _print_skipped(result)


def _applied(step: Step) -> str:
    """How often a pass applied; whether the graph changed is measured, not what the pass says."""
    if not step.changed:
        return "-"
    return str(len(step.report.changes) or "yes")


def _print_skipped(result: Result) -> None:
    for step in result.steps:
        reasons = Counter(skip.reason for skip in step.report.skipped)
        for reason, times in reasons.most_common(5):
            node = next(s.node for s in step.report.skipped if s.reason == reason)
            more = f" and {times - 1} more" if times > 1 else ""
            typer.echo(f"{step.pass_.name} left {node}{more}: {reason}")
        if len(reasons) > 5:
            typer.echo(f"{step.pass_.name}: {len(reasons) - 5} further reasons; --json lists every node.")
