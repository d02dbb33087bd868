"""Why a pass left a node alone, or what it did there: the passes' own reports, read for one node."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.graph.listing import node_line
from graphopt.graph.provenance import sources

if TYPE_CHECKING:
    from graphopt.base import Context, Pass, Report

Outcome = Literal["applied", "left", "not considered", "gone"]
SHOWN = 12
"""Lines of a neighbourhood at most: a value may have hundreds of readers."""


@dataclasses.dataclass(frozen=True)
class Account:
    """What one pass did at one node.

    `reasons` are the pass's words: what it did ("applied"), which condition failed ("left"); for "not considered",
    what it looks at, and what it says of the node in passing. `neighbourhood`: the node (marked ``>``), what it
    reads, what reads it and what the reasons name, in graph order, as `graphopt.graph.listing` shows them.
    """

    node: str
    op: str
    pass_: str
    outcome: Outcome
    reasons: list[str]
    neighbourhood: list[str]


def explain(model: ir.Model, passes: Sequence[Pass], node: str, context: Context | None = None) -> list[Account]:
    """Run `passes` over a copy of `model`; for every node whose name fits the pattern `node`, what each pass did there.

    A node that an earlier pass replaced is followed by provenance.

    Raises:
        UsageError: no node has such a name.
        PassError: a pass failed.
    """
    from graphopt.pipeline import run
    from graphopt.pipeline.registry import spec_of

    wanted = _chosen(model, node)
    accounts: dict[str, list[Account]] = {name: [] for name in wanted}
    for pass_ in passes:
        nodes = list(model.graph.all_nodes())
        result = run(model, [pass_], context)
        report = result.steps[0].report
        ops = {n.name or "": n.op_type for n in [*nodes, *result.model.graph.all_nodes()]}
        for name in wanted:
            here = [n for n in nodes if n.name == name] or [n for n in nodes if name in sources(n)]
            if not here and accounts[name] and accounts[name][-1].outcome != "gone":
                last = accounts[name][-1].pass_
                accounts[name].append(Account(name, wanted[name], str(spec_of(pass_)), "gone", [f"since {last}"], []))
            for at in here:
                outcome, reasons = _read(report, at, pass_, ops)
                lines = _neighbourhood(nodes, at, reasons)
                accounts[name].append(Account(at.name or "", at.op_type, str(spec_of(pass_)), outcome, reasons, lines))
        model = result.model
    return [account for some in accounts.values() for account in some]


def _chosen(model: ir.Model, pattern: str) -> dict[str, str]:
    ops = {node.name or "": node.op_type for node in model.graph.all_nodes()}
    if pattern in ops:
        return {pattern: ops[pattern]}
    found = {name: op for name, op in ops.items() if fnmatch.fnmatchcase(name, pattern)}
    if not found:
        by_output = [str(n.name) for n in model.graph.all_nodes() if any(v.name == pattern for v in n.outputs)]
        close = by_output or difflib.get_close_matches(pattern, ops, n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ". See: graphopt inspect."
        raise UsageError(f"no node is called {pattern!r}{hint}")
    return found


def _read(report: Report, node: ir.Node, pass_: Pass, ops: dict[str, str]) -> tuple[Outcome, list[str]]:
    """What `report` says of `node`; a condition that failed outweighs what was done beside it."""
    names = {node.name, *(v.name for v in node.outputs)}
    left = [skip.reason for skip in report.skipped if skip.node in names]
    done = [change.action for change in report.changes if change.node in names]
    if left or done:
        return ("left" if left else "applied"), list(dict.fromkeys([*left, *done]))
    entries = [(c.node, c.action) for c in report.changes] + [(s.node, s.reason) for s in report.skipped]
    return "not considered", [_looks_at(pass_, (name for name, _ in entries), ops), *_mentions(entries, names)]


def _looks_at(pass_: Pass, entries: Iterable[str], ops: dict[str, str]) -> str:
    summary = (type(pass_).__doc__ or "").strip().splitlines()[0].rstrip(".")
    counted = Counter(ops.get(name, "weights") for name in entries).most_common(6)
    here = ", ".join(f"{times} {op}" for op, times in counted) or "nothing"
    return f"{pass_.name} did not look at this node. What it does: {summary}. In this model it looked at: {here}"


def _mentions(entries: Iterable[tuple[str, str]], names: Iterable[str | None]) -> list[str]:
    """Entries of other nodes that name this one, in quotes."""
    quoted = [f"'{name}'" for name in names if name]
    return [f"of '{node}' it says: {text}" for node, text in entries if any(q in text for q in quoted)][:5]


def _neighbourhood(nodes: Sequence[ir.Node], at: ir.Node, reasons: Iterable[str]) -> list[str]:
    """Nodes around `at` in graph order, `at` marked; those that the reasons quote are kept first."""
    quoted = {name for reason in reasons for name in re.findall(r"'([^']+)'", reason)}
    named = [n for n in nodes if n.name in quoted or any(v.name in quoted for v in n.outputs)]
    before = [v.producer() for v in at.inputs if v is not None]
    after = [user for v in at.outputs for user in v.consumers()]
    near = dict.fromkeys([at, *named, *(n for n in before if n is not None), *after])
    kept = set(list(near)[:SHOWN])
    lines = [("> " if n is at else "  ") + f"[{n.name}] {node_line(n)}" for n in nodes if n in kept]
    return lines if len(near) <= SHOWN else [*lines, f"  and {len(near) - SHOWN} more"]
