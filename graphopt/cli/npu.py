"""``graphopt npu``: what a model costs on a simulated NPU."""

from __future__ import annotations

from typing import Annotated

import typer

from graphopt.cli.options import Dims, Json, ModelIn, chosen_dims

app = typer.Typer(help="Cost a model on a simulated NPU, and look into compiled ones.", no_args_is_help=True)
Machine = Annotated[str, typer.Option("--machine", help="A preset or a hardware description (TOML).")]


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
    from graphopt.cli.show import count, print_json, print_table, size
    from graphopt.targets.npu.machine import load_description

    found = npu.estimate(model, machine, chosen_dims(dim))
    if json:
        print_json(found)
        return
    on_npu = [node for node in found["nodes"] if "reason" not in node]
    rows = [
        [
            node["name"],
            node["op"],
            f"{node['cycles']:,}",
            count(node["macs"]),
            f"{100 * node['utilisation']:.0f} %",
            size(node["dram_bytes"]),
            f"{node['energy_uj']:.3g}",
        ]
        for node in on_npu
    ]
    print_table(["node", "op", "cycles", "MACs", "of peak", "DRAM", "uJ"], rows)
    described = load_description(machine)
    typer.echo(
        f"{described.name}: {found['cycles']:,} cycles ({found['cycles'] / described.clock_mhz / 1e3:.3g} ms), "
        f"{count(found['macs'])} MACs at {100 * found['utilisation']:.0f} % of peak, "
        f"{size(found['dram_bytes'])} of DRAM traffic, {found['energy_uj']:.4g} uJ"
    )
    for node in found["nodes"]:
        if "reason" in node:
            typer.echo(f"not on the NPU: {node['name']} ({node['op']}): {node['reason']}")
