"""One HTML file that opens offline: a strict content-security policy, and every name in it as text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from functools import cache
from importlib import resources
from typing import Any

from graphopt.graph.cost import cost, totals
from graphopt.report import nodes
from graphopt.report.evidence import Evidence
from graphopt.report.findings import findings
from graphopt.report.gpu import gpu_section
from graphopt.report.html import clean, count, render, size, tag
from graphopt.report.latency import layers
from graphopt.report.sections import findings_section, latency_section, npu_section, pipeline_section
from graphopt.report.union import unite

SCRIPTS = ("state.js", "draw.js", "panel.js", "main.js")
_SLOT = re.compile(r"<!--(title|policy|style|script|data|head|before|after)-->")


def page(evidence: Evidence) -> str:
    """The report as HTML. Nothing in it is loaded from elsewhere, and only its own script and style may run."""
    before = evidence.before or evidence.after
    spent = {node.name: node.macs for node in cost(before).nodes}
    timed = layers(evidence.by_node, spent) if evidence.by_node is not None else []
    found = nodes.index(unite(evidence.before, evidence.after), timed)
    totals_before, totals_after = totals(before), totals(evidence.after)
    top = [
        findings_section(findings(evidence, found, timed, spent), evidence.notes),
        pipeline_section(evidence, totals_before, totals_after),
    ]
    bottom = [latency_section(evidence, found, timed), npu_section(evidence, found), gpu_section(evidence)]
    script, style = "\n".join(static(name) for name in SCRIPTS), static("page.css")
    data = to_script(nodes.to_json(evidence, found, timed))
    parts = {
        "title": html.escape(clean(evidence.title)),
        "policy": policy(script, style),
        "style": f"<style>{style}</style>",
        "script": f"<script>{script}</script>",
        "data": f'<script type="application/json" id="data">{data}</script>',
        "head": _head(evidence, totals_before, totals_after),
        "before": "".join(render(section) for section in top if section is not None),
        "after": "".join(render(section) for section in bottom if section is not None),
    }
    return _SLOT.sub(lambda slot: parts[slot[1]], static("page.html"))


def policy(script: str, style: str) -> str:
    """Content-Security-Policy: this one script and this one style, by their digests, and nothing else at all."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'sha256-{_digest(script)}'",
            f"style-src 'sha256-{_digest(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def to_script(data: Any) -> str:
    """JSON that can stand in a script element: no ``<``, ``>`` or ``&``, and no number that JSON lacks."""
    text = json.dumps(_finite(data), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, (list, tuple)) else data


@cache
def static(name: str) -> str:
    """One of the page's own files."""
    return (resources.files("graphopt.report") / "static" / name).read_text(encoding="utf-8")


def _head(evidence: Evidence, before: dict[str, int], after: dict[str, int]) -> str:
    """The title, and the totals on both sides."""
    texts = {"nodes": str, "weight_bytes": size, "macs": count}
    names = {"nodes": "nodes", "weight_bytes": "weights", "macs": "MACs"}
    facts = tag("dl", class_="totals")
    for key, text in texts.items():
        was, now = text(before[key]), text(after[key])
        value = now if evidence.before is None or was == now else f"{was} → {now}"
        facts.append(tag("div", tag("dt", names[key]), tag("dd", value)))
    if evidence.target:
        facts.append(tag("div", tag("dt", "target"), tag("dd", evidence.target)))
    return render(tag("h1", evidence.title)) + render(facts)
