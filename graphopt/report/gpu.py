"""The part of the page on a build for a GPU: what ptxas found of each kernel, and what a data sheet allows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from graphopt.report.evidence import Evidence
from graphopt.report.html import add, milliseconds, percent, size, table, tag

MANY = 200
"""Kernels that are shown."""


def gpu_section(evidence: Evidence) -> Element | None:
    """Kernels as compiled, then for each named GPU an estimate of the time and what limits each kernel."""
    estimates = evidence.account.get("estimates")
    kernels = evidence.account.get("kernels")
    if not estimates or not isinstance(kernels, Sequence):
        return None
    text = (
        f"Compiled by {evidence.account['route']}, {evidence.account['embedded']}; {evidence.account['run']}. "
        "Occupancy is how many of a multiprocessor's warps fit, by the kernel's registers and shared memory."
        f"{_on_tensor_cores(evidence.account)}"
    )
    section = tag("section", tag("h2", "On the GPU"), tag("p", text), id="gpu")
    add(section, _kernels(kernels))
    for name, found in estimates.items():
        add(section, *_estimate(name, found))
    return section


def _on_tensor_cores(account: Mapping[str, Any]) -> str:
    share = account.get("tensor_core_share")
    if share is None:
        return ""
    return f" {percent(share)} of the multiply-adds are on tensor cores (counted in {account['counted']})."


def _kernels(kernels: Sequence[Mapping[str, Any]]) -> Element:
    rows = [
        [
            tag("code", kernel["name"]), kernel["schedule"], ", ".join(kernel["nodes"]), _number(kernel, "registers"),
            size(kernel["shared"]) if "shared" in kernel else "",
            str(kernel["spill_stores"] + kernel["spill_loads"]) if "spill_stores" in kernel else "",
            _number(kernel, "blocks"), _number(kernel, "threads"),
            f"{percent(kernel['occupancy'])} ({kernel['occupancy_limit']})" if "occupancy" in kernel else "",
        ]
        for kernel in kernels[:MANY]
    ]  # fmt: skip
    columns = ["kernel", "schedule", "nodes", "registers", "shared", "bytes spilled", "blocks", "threads", "occupancy"]
    return table(columns, rows, numbers=3, caption="Kernels as compiled")


def _number(kernel: Mapping[str, Any], key: str) -> str:
    return f"{kernel[key]:,}" if key in kernel else ""


def _estimate(name: str, found: Mapping[str, Any]) -> list[Element]:
    total = found["milliseconds"] or 1.0
    rows = [
        [
            tag("code", row["function"]), row["limit"], str(row["calls"]), f"{row['microseconds']:.3g}",
            percent(row["microseconds"] / 1e3 / total),
        ]
        for row in found["kernels"][:MANY]
    ]  # fmt: skip
    columns = ["function", "limited by", "calls", "estimated us", "share"]
    heading = f"{name}: {milliseconds(found['milliseconds'])}, estimated"
    folded = tag(
        "details",
        tag("summary", heading),
        tag("p", f"This is {found['estimate']}."),
        table(columns, rows, numbers=2, caption=f"Roofline estimate for {name}"),
    )
    return [folded]
