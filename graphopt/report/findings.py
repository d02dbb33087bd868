"""The answers that people open a report for: what costs most, which pass changed it, where the error enters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graphopt.graph.provenance import sources
from graphopt.report.evidence import Evidence
from graphopt.report.html import count, milliseconds, percent
from graphopt.report.latency import Layer
from graphopt.report.nodes import Found, Saying, about, sayings, share_off, title, touched
from graphopt.report.union import AFTER

if TYPE_CHECKING:
    from graphopt.compare import NodeError

SMALL = 1e-4
"""A relative error that rounding alone may make."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A question, its answer, more on it, and the items that it is about."""

    question: str
    answer: str
    more: list[str]
    items: list[int]


def findings(evidence: Evidence, found: Found, layers: Sequence[Layer], macs: Mapping[str, int]) -> list[Finding]:
    """The findings, those that nothing is known of left out."""
    costly = _costliest(evidence, found, layers, macs)
    return [f for f in (costly, costly and _changed(evidence, found, costly), _error(evidence, found)) if f]


def _costliest(evidence: Evidence, found: Found, layers: Sequence[Layer], macs: Mapping[str, int]) -> Finding | None:
    question = "Which layer costs most?"
    timed = layers
    if timed and evidence.profile is not None:
        lines = [f"{one.name}: {milliseconds(one.ms)}, {percent(one.share)} of it" for one in timed[1:4]]
        answer = f"{timed[0].name} takes {percent(timed[0].share)} of the time: {milliseconds(timed[0].ms)}"
        whole = milliseconds(evidence.profile.total_ms)
        lines.append(f"a run takes {whole} on {evidence.profile.threads} thread here")
        return Finding(question, answer, lines, _items(found, timed[0].name))
    cycles = {str(n["name"]): int(n["cycles"]) for n in evidence.account.get("npu", {}).get("nodes", ())}
    costs, unit = (cycles, "cycles, simulated") if cycles else (macs, "multiply-accumulates; no kernel was timed")
    ranked = sorted(((n, v) for n, v in costs.items() if v), key=lambda pair: -pair[1])
    if not ranked:
        return None
    total = sum(costs.values())
    lines = [f"{name}: {count(value)}, {percent(value / total)}" for name, value in ranked[1:4]]
    name, value = ranked[0]
    return Finding(question, f"{name} has {percent(value / total)} of the {unit}", lines, _items(found, name))


def _items(found: Found, name: str) -> list[int]:
    """The item of that name, before what else stems from it."""
    items = [found.items[name]] if name in found.items else []
    for number, item in enumerate(found.union.items):
        if item.after is not None and number not in items and name in sources(item.after):
            items.append(number)
    here = [n for n in items if found.union.items[n].sides & AFTER]
    return here or items


def _changed(evidence: Evidence, found: Found, costly: Finding) -> Finding | None:
    if not evidence.passes:
        return None
    said, order = sayings(evidence.passes), [title(step) for step in evidence.passes]
    names: list[str] = []
    told: list[Saying] = []
    for number in costly.items:
        names.extend(touched(found.union.items[number], said, order))
        told.extend(about(found.union.items[number], said))
    names = sorted(dict.fromkeys(names), key=lambda name: order.index(name) if name in order else len(order))
    told = sorted((one for one in dict.fromkeys(told) if one.changed), key=lambda one: order.index(one.by))
    lines = [f"{one.by}: {one.node}: {one.text}" for one in told]
    more = lines[:6] + ([f"and {len(lines) - 6} more"] if len(lines) > 6 else [])
    return Finding("Which passes changed that layer?", ", ".join(names) or "no pass changed it", more, costly.items)


def _error(evidence: Evidence, found: Found) -> Finding | None:
    """The node that moves its value most, given the inputs that it had before the passes."""
    question = "Where does the error enter?"
    blame = _blame(evidence)
    if not evidence.errors:
        return (
            Finding(question, f"the outputs move most in {blame[0][0]}", [line for _, line in blame], [])
            if blame
            else None
        )
    worst = sorted(evidence.errors.values(), key=lambda error: error.alone.db)
    if share_off(worst[0].accumulated.db) < SMALL and share_off(worst[0].alone.db) < SMALL:
        return Finding(question, "nowhere: no value is further off than rounding makes it", [], [])
    first = worst[0]
    lines = [f"with what came before it, {percent(share_off(first.accumulated.db))}"]
    lines += [f"changed by {', '.join(first.passes)}"] if first.passes else []
    lines += [f"then {one.node}: {_own(one)}" for one in worst[1:3] if share_off(one.alone.db) >= SMALL]
    lines += [line for _, line in blame[:3]]
    items = [found.items[one.node] for one in worst[:3] if one.node in found.items]
    return Finding(question, f"{first.node}: {_own(first)}", lines, items)


def _own(error: NodeError) -> str:
    return f"by itself it puts its values {percent(share_off(error.alone.db))} off"


def _blame(evidence: Evidence) -> list[tuple[str, str]]:
    """Passes by how far each moved the outputs."""
    moved = [
        (float(s["facts"]["relative_error"]), title(s))
        for s in evidence.passes
        if "relative_error" in s.get("facts", {})
    ]
    moved = [pair for pair in moved if pair[0] > 1e-5]
    return [(name, f"{name} moved the outputs by {percent(error)}") for error, name in sorted(moved, reverse=True)]
