"""The parts of the page that need no script: findings, the pipeline, times of layers and kernels, the NPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from graphopt.measure.profile import RUNTIME
from graphopt.report import charts
from graphopt.report.evidence import Evidence
from graphopt.report.findings import Finding
from graphopt.report.html import add, count, jump, milliseconds, percent, size, table, tag
from graphopt.report.latency import Layer
from graphopt.report.nodes import Found, title

MANY = 200
"""Lines of a pass's account that are shown."""
TOTALS = (("nodes", "nodes"), ("weight bytes", "weight_bytes"), ("MACs", "macs"))


def findings_section(found: Sequence[Finding], notes: Sequence[str]) -> Element:
    """The answers, each with a button that shows it in the graph."""
    section = tag("section", tag("h2", "In short"), id="findings")
    cards = tag("div", class_="cards")
    for one in found:
        card = tag("article", tag("h3", one.question), tag("p", one.answer, class_="answer"))
        if one.more:
            add(card, tag("ul", *(tag("li", line) for line in one.more)))
        if one.items:
            add(card, jump("Show in the graph", one.items[0], data_also=" ".join(map(str, one.items))))
        add(cards, card)
    add(section, cards if found else None)
    for note in notes:
        add(section, tag("p", note, class_="note"))
    return section


# ---- the pipeline ---------------------------------------------------------------------------------------


def pipeline_section(evidence: Evidence, before: Mapping[str, int], after: Mapping[str, int]) -> Element | None:
    """The passes in order: what each left of the graph, moved and said."""
    if not evidence.passes:
        return None
    section = tag("section", tag("h2", "The pipeline, pass by pass"), id="pipeline")
    rows = _history(evidence.passes, before, after)
    titles = ["given", *(title(step) for step in evidence.passes)]
    lines = [
        (name, [row[key] / before[key] if before.get(key) and key in row else None for row in rows])
        for name, key in TOTALS
    ]
    add(section, charts.steps(titles, lines))
    cells: list[list[Element | str | None]] = [
        ["given", "", *_totals(rows[0], None), "", *_scores(_first(evidence.passes))]
    ]
    for step, row, last in zip(evidence.passes, rows[1:], rows, strict=False):
        error = step.get("facts", {}).get("relative_error")
        moved = "" if error is None else percent(float(error)) if error else "0"
        applied = f"{len(step.get('changes', ())) or 'yes'}" if step.get("changed") else "nothing"
        cells.append([title(step), applied, *_totals(row, last), moved, *_scores(step.get("facts", {}))])
    columns = ["pass", "changes", "nodes", "weights", "MACs", "outputs moved by", *_score_names(evidence.passes)]
    add(section, table(columns, cells, caption="What is left after each pass"))
    pareto = _pareto(evidence.passes, rows)
    if pareto is not None:
        add(section, tag("h3", "What accuracy costs"), pareto)
    for step in evidence.passes:
        add(section, _account(step))
    return section


def _history(
    passes: Sequence[Mapping[str, Any]], before: Mapping[str, int], after: Mapping[str, int]
) -> list[Mapping[str, int]]:
    """The totals at the start and after each pass; empty where a pass changed the graph and did not say."""
    rows: list[Mapping[str, int]] = [before]
    for step in passes:
        said = step.get("facts", {}).get("totals")
        rows.append(said if isinstance(said, Mapping) else {} if step.get("changed") else rows[-1])
    return [*rows[:-1], after]


def _totals(row: Mapping[str, int], last: Mapping[str, int] | None) -> list[Element | str | None]:
    texts = {"nodes": str, "weight_bytes": size, "macs": count}
    found: list[Element | str | None] = []
    for _, key in TOTALS:
        text = texts[key](row[key]) if key in row else ""
        same = last is not None and row.get(key) == last.get(key)
        found.append(tag("span", text, class_="same") if same else text)
    return found


def _first(passes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The scores of the model that was given, as the first pass with scores tells them."""
    for step in passes:
        score = step.get("facts", {}).get("score")
        if score:
            return {"score": {**score, "value": score["before"]}}
    return {}


def _score_names(passes: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [str(s["facts"]["score"]["metric"]) for s in passes if s.get("facts", {}).get("score")]
    return names[:1]


def _scores(facts: Mapping[str, Any]) -> list[Element | str | None]:
    return [f"{facts['score']['value']:.4f}"] if facts.get("score") else []


def _pareto(passes: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, int]]) -> Element | None:
    """The score over the bytes of the weights, pass by pass."""
    scored = [
        charts.Mark(row["weight_bytes"] / 1e3, float(step["facts"]["score"]["value"]), title(step))
        for step, row in zip(passes, rows[1:], strict=True)
        if step.get("facts", {}).get("score") and row
    ]
    if len(scored) < 2:
        return None
    first = _first(passes)["score"]
    marks = [charts.Mark(rows[0]["weight_bytes"] / 1e3, float(first["value"]), "given"), *scored]
    name = str(first["metric"])
    return charts.scatter(marks, title=f"{name} over size", x="kB of weights", y=name, path=True)


def _account(step: Mapping[str, Any]) -> Element:
    """What a pass did and what it left alone, folded."""
    changes, skipped = list(step.get("changes", ())), list(step.get("skipped", ()))
    summary = f"{title(step)}: {len(changes)} changes, {len(skipped)} left alone, {step.get('seconds', 0.0):.2f} s"
    found = tag(
        "details",
        tag("summary", summary),
        tag("p", tag("code", str(step.get("pass", ""))), f" keeps: {step.get('preserves', '')}"),
    )
    for heading, lines, key in (("Changed", changes, "action"), ("Left alone", skipped, "reason")):
        if lines:
            items = [tag("li", jump(str(e["node"]), None), f": {e[key]}") for e in lines[:MANY]]
            more = [tag("li", f"and {len(lines) - MANY} more")] if len(lines) > MANY else []
            add(found, tag("h4", heading), tag("ul", *items, *more))
    return found


# ---- time -----------------------------------------------------------------------------------------------


def latency_section(evidence: Evidence, found: Found, layers: Sequence[Layer]) -> Element | None:
    """Milliseconds of each layer, and of each kernel."""
    profile = evidence.profile
    if profile is None or not layers:
        return None
    threads = f"{profile.threads} thread{'s' if profile.threads > 1 else ''}"
    intro = (
        f"A run takes {milliseconds(profile.total_ms)} here, on {threads}. Nodes that are computed together are one "
        "layer, called by the one with the most arithmetic; onnxruntime runs the model as it was given. Shares are of "
        "the layers; what lies between them (memory, shapes) can't be timed call by call."
    )
    section = tag("section", tag("h2", "Where the time goes"), tag("p", intro), id="latency")
    most = layers[0].ms or 1.0
    rows = [
        [
            jump(one.name, found.items.get(one.name)),
            charts.bar(one.ms / most),
            milliseconds(one.ms),
            percent(one.share),
            milliseconds(one.onnxruntime_ms) if one.onnxruntime_ms else "",
            "" if one.ratio is None else f"{one.ratio:.2f}x",
            ", ".join(n for n in one.nodes if n != one.name),
        ]
        for one in layers[:MANY]
    ]
    add(
        section,
        table(
            ["layer", "", "time", "share", "onnxruntime", "we are faster by", "computed with it"],
            rows,
            caption="Layers of the model given",
        ),
    )
    kernels: list[list[Element | str | None]] = []
    for row in [kernel for kernel in profile.kernels if kernel.name != RUNTIME][:MANY]:
        rate = "" if row.gflops is None else f"{row.gflops:.1f}"
        peak = "" if row.gflops is None else percent(row.gflops / profile.peak_gflops)
        kernels.append(
            [
                tag("code", row.name),
                str(row.calls),
                milliseconds(row.ms),
                percent(row.share),
                rate,
                peak,
                ", ".join(row.nodes),
            ]
        )
    columns = ["kernel", "calls", "time", "share", "GFLOP/s", "of float peak", "source nodes"]
    folded = tag("details", tag("summary", f"{len(kernels)} kernels"), table(columns, kernels, caption="Kernels"))
    add(section, folded)
    return section


def npu_section(evidence: Evidence, found: Found) -> Element | None:
    """The simulated NPU: which unit is busy when, and how near each layer is to the machine's limits."""
    npu = evidence.account.get("npu")
    if not npu or not npu.get("nodes"):
        return None
    nodes = npu["nodes"]
    intro = (
        f"{npu['summary']}, simulated: {npu['cycles']:,} cycles, {milliseconds(npu['milliseconds'])}, "
        f"{percent(npu['utilisation'])} of its multipliers used. Times are the simulator's."
    )
    section = tag("section", tag("h2", "On the NPU"), tag("p", intro), id="npu")
    units = list(dict.fromkeys(unit for node in nodes for unit in node.get("busy", {})))
    bars: list[tuple[int, float, float, str, int | None]] = []
    at = 0.0
    for node in nodes:
        item = found.items.get(node["name"])
        bars.append((0, at, node["cycles"], node["name"], item))
        for lane, unit in enumerate(units, 1):
            busy = node.get("busy", {}).get(unit, 0)
            if busy:
                bars.append(
                    (lane, at, busy, f"{node['name']}: {unit} busy {busy:,} of {node['cycles']:,} cycles", item)
                )
        at += node["cycles"]
    title = "Cycles of each layer in order; below, how many of them each unit is busy"
    add(
        section,
        tag("h3", "Timeline"),
        tag("p", f"{title}."),
        charts.gantt(["layer", *units], bars, title=title, end=at),
    )
    add(section, *_roofline(evidence, found, nodes))
    rows = [
        [
            jump(n["name"], found.items.get(n["name"])), n["op"], f"{n['cycles']:,}", percent(n["cycles"] / (at or 1)),
            count(n["macs"]), percent(n["utilisation"]), size(n["dram_bytes"]), n["bound"],
        ]
        for n in nodes[:MANY]
    ]  # fmt: skip
    columns = ["layer", "operator", "cycles", "share", "MACs", "multipliers used", "moved", "bound by"]
    add(section, table(columns, rows, numbers=2, caption="Layers on the NPU"))
    return section


def _roofline(evidence: Evidence, found: Found, nodes: Sequence[Mapping[str, Any]]) -> list[Element]:
    """MACs a cycle over MACs a byte; the peak is what the nodes' utilisation is a share of."""
    peaks = [n["macs"] / (n["cycles"] * n["utilisation"]) for n in nodes if n["utilisation"] and n["cycles"]]
    marks = [
        charts.Mark(n["macs"] / n["dram_bytes"], n["macs"] / n["cycles"], n["name"], found.items.get(n["name"]))
        for n in nodes
        if n["macs"] and n["dram_bytes"] and n["cycles"]
    ]
    if not peaks or not marks:
        return []
    memories = evidence.machine.get("memories", ())
    roofs = [(f"{m['name']}: {m['bytes_per_cycle']:g} B/cycle", float(m["bytes_per_cycle"])) for m in memories]
    title = "Roofline: arithmetic a cycle over arithmetic a byte moved"
    text = (
        f"{title}. The machine's peak is {max(peaks):.0f} MACs a cycle; a line is as fast as a layer can be that moves "
        "all its bytes through that memory, so a layer that uses several stands between their lines."
    )
    plot = charts.scatter(
        marks, title=title, x="MACs a byte", y="MACs a cycle", log=True, roofs=roofs, ceiling=max(peaks)
    )
    return [tag("h3", "Roofline"), tag("p", text), plot]
