"""What an artifact says of how it was made: the passes, what is computed together, what was left and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphopt.measure.profile import kernels

if TYPE_CHECKING:
    from graphopt.artifact.reading import Artifact


@dataclasses.dataclass(frozen=True)
class Built:
    """`target` and `passes` as text that the command line takes. `together`: source nodes that one kernel call
    computes, where they are several; where a kernel's calls aren't told apart, the nodes of all of them. `left`: node
    -> why the target did not do with it all that it can. `skipped`: for each pass, node -> why it left the
    node. `estimates`: GPU -> the least milliseconds that its data sheet allows; nothing measured.
    `tensor_core_share`: of the multiply-adds, on a GPU.
    """

    target: str
    passes: list[str]
    together: list[list[str]]
    left: dict[str, str]
    skipped: dict[str, dict[str, str]]
    estimates: dict[str, float]
    tensor_core_share: float | None


def built(artifact: Artifact) -> Built:
    """The account of `artifact`."""
    report = artifact.report
    target: Mapping[str, Any] = report["target"]
    cpu: Mapping[str, Any] = target.get("cpu", {}) if "npu" in target else target
    every = kernels(report).values()
    calls = [nodes for kernel in every for nodes in kernel.get("calls") or [kernel.get("nodes", ())]]
    npu = {item["name"]: item["reason"] for item in target.get("npu", {}).get("left", ())}
    return Built(
        target=artifact.manifest.target,
        passes=[step["pass"] for step in report.get("passes", ())],
        together=[list(nodes) for nodes in calls if len(nodes) > 1],
        left={**npu, **{name: f"quantized: {how}" for name, how in cpu.get("integer", {}).items()}},
        skipped={
            step["pass"]: {skip["node"]: skip["reason"] for skip in step["skipped"]}
            for step in report.get("passes", ())
            if step["skipped"]
        },
        estimates={gpu: one["milliseconds"] for gpu, one in target.get("estimates", {}).items()},
        tensor_core_share=target.get("tensor_core_share"),
    )
