"""The command streams of a model or an artifact: what reports and the disassembler look at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import ArtifactError

if TYPE_CHECKING:
    from graphopt.targets.npu.machine import Machine
    from graphopt.targets.npu.stream import Stream


@dataclasses.dataclass(frozen=True)
class Streams:
    """Streams in the order they run, for `machine`; `ops`: the operator of each source node; `left`: the reason for
    each node that the CPU computes."""

    machine: Machine
    streams: list[Stream]
    ops: dict[str, str]
    left: dict[str, str]


def of_file(path: Path, machine: str | None = None, dims: Mapping[str, int] | None = None) -> Streams:
    """Of an artifact for the npu target, or of an ONNX model as `graphopt.npu.estimate` takes it (default: edge).

    Raises:
        ArtifactError: the artifact holds no NPU program.
        UsageError: no such machine, or it is a bare array; `machine` was given for an artifact, which has its own.
    """
    return of_artifact(path, machine) if path.suffix == ".gopt" else of_model(path, machine or "edge", dims)


def of_artifact(path: Path, machine: str | None = None) -> Streams:
    """What the npu target left in an artifact."""
    from graphopt.artifact import read
    from graphopt.errors import UsageError
    from graphopt.targets.npu.asm import assemble
    from graphopt.targets.npu.machine import from_json

    if machine is not None:
        raise UsageError(f"{path} was compiled for its own machine: leave --machine out, or give the ONNX model.")
    artifact = read(path)
    texts = sorted(name for name in artifact.files if name.startswith("npu/") and name.endswith(".asm"))
    if "npu/machine.json" not in artifact.files:
        raise ArtifactError(f"{path} was compiled for {artifact.manifest.target} and holds no NPU program.")
    described = from_json(json.dumps(json.loads(artifact.read_file("npu/machine.json"))).encode())
    told = artifact.report["target"]["npu"]
    return Streams(
        described,
        [assemble(artifact.read_file(name).decode()) for name in texts],
        {node["name"]: node["op"] for node in told["nodes"]},
        {node["name"]: node["reason"] for node in told["left"]},
    )


def of_model(path: Path, machine: str, dims: Mapping[str, int] | None = None) -> Streams:
    """What the compiler emits for an ONNX model."""
    from graphopt.api import open_model
    from graphopt.npu.prepare import fix_sizes, quantized
    from graphopt.targets.npu.machine import load_machine
    from graphopt.targets.npu.rewrite import offload

    described = load_machine(machine)
    opened = open_model(path, dims)
    fix_sizes(opened)
    model = quantized(opened)
    ops = {str(node.name): node.op_type for node in model.graph}
    offloaded, left = offload(model, described)
    return Streams(described, [item.stream for item in offloaded], ops, {k: reason for k, (_, reason) in left.items()})
