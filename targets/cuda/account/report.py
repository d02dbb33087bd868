"""The report of a build for a GPU: static facts of each kernel, and estimates; nothing in it was measured."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.targets.cuda.account.occupancy import occupancy
from graphopt.targets.cuda.account.roofline import Work, estimates
from graphopt.targets.cuda.arch import devices
from graphopt.targets.cuda.machine_code.compiler import Binary
from graphopt.targets.cuda.machine_code.ptxas import parse
from graphopt.targets.cuda.machine_code.sass import Instructions, instructions, tensor_core_share

if TYPE_CHECKING:
    import tvm

    from graphopt.targets.cuda.account.work import Launch
    from graphopt.targets.cuda.graphs import Graphs
    from graphopt.targets.lowering.origins import Origin

_SUFFIX = re.compile(r"_kernel(?:_(\d+))?$")


def works(
    loops: Mapping[str, tvm.tirx.PrimFunc],
    launched: Mapping[str, Sequence[Launch]],
    origins: Mapping[str, Origin],
    rules: Mapping[str, str],
) -> list[Work]:
    """What each function that the model calls has to do: `loops` before scheduling, `launched` after it."""
    from graphopt.targets.cuda.account.work import moved_bytes, output_elements, product_type

    return [
        Work(
            function=name,
            calls=max(1, len(origins[name].calls)),
            macs=round(origins[name].macs_per_element * output_elements(loops[name])),
            moved=moved_bytes(loops[name]),
            blocks=max(launch.blocks for launch in launched[name]),
            tensor_cores=product_type(loops[name]) if rules[name] == "TensorCores" else None,
        )
        for name in launched
        if name in origins
    ]


def report(
    binaries: Mapping[str, Binary],
    rules: Mapping[str, str],
    origins: Mapping[str, Origin],
    launched: Mapping[str, Sequence[Launch]],
    todo: Sequence[Work],
    source: str,
    checks: Mapping[str, Any],
    graphs: Graphs,
) -> dict[str, Any]:
    """The account of a build: `binaries` by architecture, `checks` those of `graphopt.targets.cuda.checks.check`, the
    others by function.

    `kernels` are those of the first architecture; of the others `other_archs` has what differs by architecture.
    `tensor_core_share` is of the model's multiply-adds (`macs`), on the first; `counted` says from what.
    """
    read = {arch: instructions(binary, source) for arch, binary in binaries.items()}
    by_arch = {
        arch: _kernels(arch, binary, rules, origins, launched, read[arch][0]) for arch, binary in binaries.items()
    }
    first, *others = by_arch
    binary, (found, counted) = binaries[first], read[first]
    share = tensor_core_share(todo, found)
    return {
        "arch": first if not others else list(by_arch),
        "route": binary.route,
        "compiler": binary.compiler,
        "embedded": "CUDA C, compiled when loaded beside a GPU"
        if binary.cubin is None
        else f"fatbin of {', '.join(by_arch)}"
        if others
        else "cubin",
        "kernels": by_arch[first],
        "other_archs": {arch: by_arch[arch] for arch in others},
        "spilling": [
            kernel["name"] if arch == first else f"{kernel['name']} ({arch})"
            for arch, kernels in by_arch.items()
            for kernel in kernels
            if kernel.get("spill_stores") or kernel.get("spill_loads")
        ],
        "notes": [
            *([f"{share:.1%} of the multiply-adds are on tensor cores (counted in {counted})"] if share else []),
            *([f"{graphs.kernels} of {graphs.of} kernels are launched as CUDA graphs"] if graphs.kernels else []),
        ],
        "macs": sum(work.calls * work.macs for work in todo),
        "tensor_core_share": share,
        "counted": counted,
        "checks": dict(checks),
        "cuda_graphs": dataclasses.asdict(graphs),
        "estimates": estimates(list(binaries), todo),
        "run": "not run: compiling never runs the kernels" if devices() else "not run: no CUDA device on this machine",
    }


def _kernels(
    arch: str,
    binary: Binary,
    rules: Mapping[str, str],
    origins: Mapping[str, Origin],
    launched: Mapping[str, Sequence[Launch]],
    found: Mapping[str, Instructions],
) -> list[dict[str, Any]]:
    """One row for each kernel that ptxas saw; without ptxas, for each function."""
    rows: list[dict[str, Any]] = []
    for use in parse(binary.log):
        row = {**dataclasses.asdict(use), **_of(use.function, rules, origins), **_instructions(found.get(use.name))}
        launch = _launch_of(use.name, launched.get(use.function, ()))
        if launch is not None:
            held = occupancy(arch, launch.threads, use.registers, use.shared)
            row |= {
                "blocks": launch.blocks,
                "threads": launch.threads,
                "occupancy": held.share,
                "occupancy_limit": held.limit,
            }
        rows.append(row)
    return rows or [
        {"name": name, **_of(name, rules, origins), **_instructions(found.get(f"{name}_kernel"))} for name in rules
    ]


def _instructions(found: Instructions | None) -> dict[str, int]:
    return {} if found is None else {"tensor_core_instructions": found.matrix, "asynchronous_copies": found.copies}


def _of(function: str, rules: Mapping[str, str], origins: Mapping[str, Origin]) -> dict[str, Any]:
    nodes = list(origins[function].nodes) if function in origins else []
    return {"schedule": rules.get(function, ""), "nodes": nodes}


def _launch_of(kernel: str, launched: Sequence[Launch]) -> Launch | None:
    """The launch of ``f_kernel`` is the first of f's, of ``f_kernel_1`` the second."""
    suffix = _SUFFIX.search(kernel)
    index = int(suffix[1] or 0) if suffix else 0
    return launched[index] if index < len(launched) else None
