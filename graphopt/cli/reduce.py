"""``graphopt reduce``: the smallest graph that still fails."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import options as o
from graphopt.cli.bisect import CheckText
from graphopt.errors import UsageError

Output = Annotated[Path, typer.Option("-o", "--output", help="Where the small model goes.")]
State = Annotated[Path | None, typer.Option(help="A file of verdicts: the same command again goes on where it was.")]
Seconds = Annotated[float | None, typer.Option("--time-limit", min=0.1, help="Seconds; then the smallest so far.")]


def reduce(
    model: o.ModelIn,
    output: Output,
    check: CheckText = None,
    pipeline: o.Pipeline = None,
    recipe: o.Recipe = None,
    preset: o.Preset = None,
    plugin: o.Plugin = None,
    dim: o.Dims = None,
    seed: o.Seed = 0,
    state: State = None,
    time_limit: Seconds = None,
    json: o.Json = False,
) -> None:
    """Shrink a model that fails to the smallest that fails in the same way: nodes, then shapes, then weights.

    It fails when --check says so ('command {model}'), or else when a pass of the pipeline crashes on it, or breaks what
    it declares to preserve.
    """
    from graphopt.api import open_model
    from graphopt.atomic import check_writable
    from graphopt.base import Context
    from graphopt.cli.show import print_json, size
    from graphopt.debug import command, pipeline_fails
    from graphopt.debug import reduce as shrink
    from graphopt.graph import save
    from graphopt.progress import status

    given = [pipeline, recipe, preset]
    if (check is None) == all(option is None for option in given):
        raise UsageError("give one of --check 'command {model}' and a pipeline (-p, --recipe, --preset) that fails.")
    check_writable(output)
    opened = open_model(model, o.chosen_dims(dim))
    if check is not None:
        judge, label = command(check), check
    else:
        choices = o.Choices(pipeline=pipeline, recipe=recipe, preset=preset, plugin=plugin)
        judge, label = pipeline_fails(o.chosen_passes(choices), Context(seed=seed)), f"{given} seed {seed}"
    nodes = len(opened.graph)
    with status(f"{nodes} nodes") as show:
        found = shrink(
            opened, judge, seconds=time_limit, state=state, label=label,
            progress=lambda phase, left, checks: show(f"{phase}: {left} of {nodes} nodes left, {checks} checks"),
        )  # fmt: skip
    save(found.model, output)
    if json:
        names = [node.name for node in found.model.graph]
        print_json(
            {
                "input": str(model), "output": str(output), "before": nodes, "nodes": names, "checks": found.checks,
                "seconds": found.seconds, "finished": found.finished, "failure": found.message,
            }
        )  # fmt: skip
        return
    typer.echo(f"{nodes} nodes -> {found.nodes}, in {found.checks} checks and {found.seconds:.1f} s")
    typer.echo(f"it still fails: {found.message}")
    if not found.finished:
        typer.echo("the time was up; --state FILE lets the same command go on")
    typer.echo(f"wrote {output} ({size(output.stat().st_size)})")
