"""``graphopt npu``: what a model costs on a simulated NPU, and what its command streams do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli.options import Dims, Json, ModelIn, chosen_sizes

app = typer.Typer(help="Cost a model on a simulated NPU, and look into compiled ones.", no_args_is_help=True)
Machine = Annotated[str, typer.Option("--machine", help="A preset or a hardware description (TOML).")]
OwnMachine = Annotated[
    str | None, typer.Option("--machine", help="For an ONNX model: a preset or a hardware description; default edge.")
]
File = Annotated[Path, typer.Argument(help="An artifact for the npu target, or an ONNX model.", show_default=False)]


@app.command()
def machines(json: Json = False) -> None:
    """List the machines that come with graphopt."""
    from graphopt.cli.show import print_entries, print_json
    from graphopt.targets.npu.machine import load_description, presets

    found = [load_description(name) for name in presets()]
    if json:
        print_json([machine.model_dump(mode="json") for machine in found])
        return
    print_entries((machine.name, "", [machine.summary]) for machine in found)


@app.command()
def estimate(model: ModelIn, machine: Machine = "edge", dim: Dims = None, json: Json = False) -> None:
    """Cycles, utilisation, traffic and energy per node. A float model is taken as if quantized to int8."""
    from graphopt import npu
    from graphopt.cli.show import print_json, print_table
    from graphopt.targets.npu.machine import load_description

    found = npu.estimate(model, machine, chosen_sizes(dim))
    if json:
        print_json(found)
        return
    rows = [_row(node) for node in found["nodes"] if "reason" not in node]
    print_table(COLUMNS, rows)
    described = load_description(machine)
    typer.echo(f"{described.name}: {_total({**found, 'ms': found['cycles'] / described.clock_mhz / 1e3})}")
    _print_left([node for node in found["nodes"] if "reason" in node])


@app.command()
def report(
    file: File,
    machine: OwnMachine = None,
    dim: Dims = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Also write a timeline for Perfetto or chrome://tracing here (JSON); an artifact is run for it."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Where cycles, bytes and energy go: per node the stalls by class, and a timeline."""
    from graphopt.atomic import check_writable
    from graphopt.cli.show import print_json, print_table, size
    from graphopt.npu.report import of_streams
    from graphopt.npu.streams import of_file

    if trace is not None:
        check_writable(trace)
    streams = of_file(file, machine, chosen_sizes(dim))
    found = of_streams(streams)
    if trace is not None:
        _write_trace(streams, file, found, trace)
    if json:
        print_json(found)
        return
    rows = [[*_row(node), *_shares(node["stalls"], node["cycles"]), node["bound"]] for node in found["nodes"]]
    print_table([*COLUMNS, *found["stalls"], "bound"], rows)
    typer.echo(f"{found['machine']}: {_total(found)}")
    classes = zip(found["stalls"], _shares(found["stalls"], found["cycles"]), strict=True)
    typer.echo("cycles: " + ", ".join(f"{name} {share}" for name, share in classes))
    typer.echo("bytes: " + ", ".join(f"{name} {size(moved)}" for name, moved in found["bytes"].items()))
    typer.echo("energy: " + ", ".join(f"{name} {value:.4g} uJ" for name, value in found["energy"].items()))
    most = max((used for _, used in found["occupancy"]), default=0)
    typer.echo(f"scratchpad: at most {size(most)} of {size(streams.machine.scratchpad_bytes)} in use")
    if trace is not None:
        if "cpu" in found:
            typer.echo(
                f"CPU: {len(found['cpu']['kernels'])} kernels, {found['cpu']['ms']:.3g} ms measured on this machine"
            )
        typer.echo(f"wrote {trace}: open it in https://ui.perfetto.dev")
    _print_left(found["left"])


@app.command()
def disasm(file: File, machine: OwnMachine = None, dim: Dims = None) -> None:
    """Print the command streams as text, each word with the source node it computes."""
    from graphopt.npu.streams import of_file
    from graphopt.targets.npu.asm import disassemble

    for stream in of_file(file, machine, chosen_sizes(dim)).streams:
        typer.echo(disassemble(stream))


@app.command()
def sweep(
    models: Annotated[list[Path], typer.Argument(help="ONNX models.", show_default=False)],
    machine: Machine = "edge",
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE,VALUE of the machine's TOML; repeatable, all combinations are tried."),
    ] = None,
    dim: Dims = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes beside each other; default: one per core.")] = None,
    json: Json = False,
) -> None:
    """Cost models on many machines: latency, energy and an area proxy of each, and the Pareto front (marked *)."""
    import os

    from graphopt.cli.show import print_json, print_table
    from graphopt.npu.sweep import parse_setting
    from graphopt.npu.sweep import sweep as run

    settings = dict(parse_setting(text) for text in setting or ())
    found = run(models, machine, settings, chosen_sizes(dim), jobs or os.cpu_count() or 1)
    if json:
        print_json(found)
        return
    rows = [
        [
            ("* " if point["pareto"] else "  ") + (", ".join(f"{k}={v}" for k, v in point["set"].items()) or machine),
            f"{point['ms']:.3g}",
            f"{point['energy_uj']:.4g}",
            f"{point['area_mm2']:.3g}",
            f"{100 * point['utilisation']:.0f} %",
        ]
        for point in found["points"]
        if "error" not in point
    ]
    print_table(["machine", "ms", "uJ", "mm2", "of peak"], rows)
    for point in found["points"]:
        if "error" in point:
            typer.echo(f"{', '.join(f'{k}={v}' for k, v in point['set'].items())} can't run {point['error']}")


COLUMNS = ["node", "op", "cycles", "MACs", "of peak", "DRAM", "uJ"]


def _row(node: Mapping[str, Any]) -> list[str]:
    from graphopt.cli.show import count, size

    return [
        node["name"],
        node["op"],
        f"{node['cycles']:,}",
        count(node["macs"]),
        f"{100 * node['utilisation']:.0f} %",
        size(node["dram_bytes"]),
        f"{node['energy_uj']:.3g}",
    ]


def _total(found: Mapping[str, Any]) -> str:
    from graphopt.cli.show import count, size

    return (
        f"{found['cycles']:,} cycles ({found['ms']:.3g} ms), {count(found['macs'])} MACs at "
        f"{100 * found['utilisation']:.0f} % of peak, {size(found['dram_bytes'])} of DRAM traffic, "
        f"{found['energy_uj']:.4g} uJ"
    )


def _shares(parts: Mapping[str, int], whole: int) -> list[str]:
    return [f"{100 * part / whole:.0f} %" if whole else "-" for part in parts.values()]


def _print_left(nodes: Sequence[Mapping[str, Any]]) -> None:
    for node in nodes:
        op = f" ({node['op']})" if "op" in node else ""
        typer.echo(f"not on the NPU: {node['name']}{op}: {node['reason']}")


def _write_trace(streams: Any, file: Path, found: dict[str, Any], path: Path) -> None:
    """The timeline; of an artifact with its CPU kernels, which `found` then tells of too."""
    import json

    from graphopt.atomic import atomic_write
    from graphopt.npu.beside import calls
    from graphopt.npu.timeline import trace

    run = calls(file, streams.streams) if file.suffix == ".gopt" else None
    if run is not None:
        ran = [{"name": call.name, "ms": call.ms, "nodes": call.nodes} for call in run if call.stream is None]
        found["cpu"] = {"ms": sum(call.ms for call in run if call.stream is None), "kernels": ran}
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(trace(streams.streams, streams.machine, run)), encoding="utf-8")
