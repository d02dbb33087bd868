"""The answers that people open a report for: what costs most, which pass changed it, where the error enters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from graphopt.graph.provenance import sources
from graphopt.report.evidence import Evidence
from graphopt.report.html import count, milliseconds, percent
from graphopt.report.latency import Layer
from graphopt.report.nodes import Found, Saying, about, sayings, title, touched
from graphopt.report.union import AFTER


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
        lines = [f"{one.name}: {milliseconds(one.ms)}, {percent(one.share)} of the kernels' time" for one in timed[1:4]]
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
    """The node whose value is the most further from what it was than its inputs' were."""
    question = "Where does the error enter?"
    blame = _blame(evidence)
    if not evidence.errors:
        return (
            Finding(question, f"the outputs move most in {blame[0][0]}", [line for _, line in blame], [])
            if blame
            else None
        )
    inside = _noise_above(evidence, found)
    drops: list[tuple[float, int, float]] = []
    for number, item in enumerate(found.union.items):
        error = evidence.errors.get(item.after.name or "") if item.after is not None else None
        if error is not None and error.relative:
            drops.append((error.relative - inside.get(number, 0.0), number, error.relative))
    if not drops:
        return Finding(question, "nowhere: every node's value is what it was, bit for bit", [], [])
    drops.sort(key=lambda drop: -drop[0])
    if drops[0][2] < 1e-4:
        return Finding(question, f"nowhere: no value moved by more than {percent(drops[0][2])} of its size", [], [])
    _, number, error = drops[0]
    item = found.union.items[number]
    names = touched(item, sayings(evidence.passes), [title(step) for step in evidence.passes])
    moved = [name for name, _ in blame if name in names]
    lines = [f"it was changed by {', '.join(names)}"] if names else []
    lines += [f"of these, {moved[0]} moved the model's outputs most"] if len(names) > 1 and moved else []
    lines += [
        f"then {found.union.items[n].name}: {percent(e)} off, {percent(d)} more" for d, n, e in drops[1:3] if d > 0
    ]
    lines += [line for _, line in blame[:3]]
    before = inside.get(number, 0.0)
    answer = f"{item.name}: its values are {percent(error)} off, and its inputs {percent(before)}"
    return Finding(question, answer, lines, [number, *(n for _, n, _ in drops[1:3])])


def _noise_above(evidence: Evidence, found: Found) -> dict[int, float]:
    """Item -> the largest relative error among the nearest items above it whose error is known."""
    above: dict[int, list[int]] = {}
    for wire in found.union.wires:
        if wire.sides & AFTER:
            above.setdefault(wire.target, []).append(wire.source)
    own: dict[int, float] = {}
    for number, item in enumerate(found.union.items):
        error = evidence.errors.get(item.after.name or "") if item.after is not None else None
        if error is not None:
            own[number] = error.relative
    noise: dict[int, float] = {}
    for start in own:
        seen, stack, worst = {start}, list(above.get(start, ())), 0.0
        while stack and len(seen) < 64:
            at = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            if at in own:
                worst = max(worst, own[at])
            else:
                stack.extend(above.get(at, ()))
        noise[start] = worst
    return noise


def _blame(evidence: Evidence) -> list[tuple[str, str]]:
    """Passes by how far each moved the outputs."""
    moved = [
        (float(s["facts"]["relative_error"]), title(s))
        for s in evidence.passes
        if "relative_error" in s.get("facts", {})
    ]
    moved = [pair for pair in moved if pair[0] > 1e-5]
    return [(name, f"{name} moved the outputs by {percent(error)}") for error, name in sorted(moved, reverse=True)]
