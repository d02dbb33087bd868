"""The results of `coverage.py`: the compact file, and the table by operator in docs/coverage.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
DOC = Path(__file__).resolve().parents[1] / "docs" / "coverage.md"
BEGIN, END = "<!-- made by benchmarks/coverage.py: begin -->", "<!-- end -->"
WAYS = ("onnxruntime", "alone", "given", "fallback")


def read(path: Path) -> dict[str, Row]:
    """The rows by case name."""
    stored = json.loads(path.read_text())
    return {
        name: {"name": name, "suite": suite, "ops": ops, **dict(zip(WAYS, outcomes, strict=True))}
        for suite, cases in stored["suites"].items()
        for name, (ops, *outcomes) in cases.items()
    }


def write(path: Path, rows: Mapping[str, Row]) -> None:
    """One line a case: its operators, and an outcome and reason for each way."""
    from describe import versions

    suites: dict[str, list[str]] = {}
    for name, row in sorted(rows.items()):
        fields = [row["ops"], *([row[way][0], row[way][1][:160]] for way in WAYS)]
        suites.setdefault(row["suite"], []).append(f"{json.dumps(name)}: {json.dumps(fields)}")
    joined = ((suite, ",\n".join(lines)) for suite, lines in suites.items())
    body = ",\n".join(f"{json.dumps(suite)}: {{\n{lines}\n}}" for suite, lines in joined)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'{{"versions": {json.dumps(versions())},\n"suites": {{\n{body}\n}}}}\n')


def publish(rows: Mapping[str, Row]) -> None:
    """Write the tables into docs/coverage.md, between its marks."""
    before, _, rest = DOC.read_text().partition(BEGIN)
    DOC.write_text(f"{before}{BEGIN}\n\n{suites(rows)}\n\n{operators(rows)}\n\n{END}{rest.partition(END)[2]}")


def suites(rows: Mapping[str, Row]) -> str:
    """How many cases of each suite pass each way, of those that onnxruntime passes; and what the others come to."""
    lines = [
        "| suite | cases run | onnxruntime passes | of those: alone | parameters given | with fallback | wrong |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for suite in (*dict.fromkeys(row["suite"] for row in rows.values()), ""):
        own = [row for row in rows.values() if suite in ("", row["suite"])]
        there = [row for row in own if row["onnxruntime"][0] == "passes"]
        ways = [sum(row[way][0] == "passes" for row in there) for way in ("alone", "given", "fallback")]
        shares = " | ".join(f"{count} ({100 * count / max(len(there), 1):.1f} %)" for count in ways)
        wrong = sum(row[way][0] == "wrong" for row in there for way in ("alone", "given", "fallback"))
        lines.append(f"| {suite or '**all**'} | {len(own)} | {len(there)} | {shares} | {wrong} |")
    return "\n".join(lines)


def operators(rows: Mapping[str, Row]) -> str:
    """For each operator of a case's own (the node suite's first), the cases, and why those are refused that are."""
    lines = [
        "| operator | onnxruntime passes | alone | parameters given | with fallback | still refused because |",
        "|---|--:|--:|--:|--:|---|",
    ]
    groups: dict[str, list[Row]] = {}
    for row in rows.values():
        if row["suite"] == "node" and row["onnxruntime"][0] == "passes":
            groups.setdefault(row["ops"][0] if len(row["ops"]) == 1 else "expanded functions", []).append(row)
    for operator, own in sorted(groups.items()):
        alone, given, fallback = (sum(row[way][0] == "passes" for row in own) for way in ("alone", "given", "fallback"))
        reasons = Counter(_reason(row["given"][1]) for row in own if row["given"][0] != "passes")
        why = "; ".join(f"{what} ({count})" if count > 1 else what for what, count in reasons.most_common(3))
        lines.append(f"| {operator} | {len(own)} | {alone} | {given} | {fallback} | {why} |")
    return "\n".join(lines)


def _reason(message: str) -> str:
    """The operator and reason of a refusal, without nodes and advice."""
    listed = message.partition("operator: ")[2] or message
    return listed.partition(" at ")[0].replace("|", "/")[:90]
