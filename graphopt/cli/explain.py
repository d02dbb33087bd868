"""``graphopt explain``: why a pass left a node alone, or what it did there."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from graphopt.cli import options as o

Node = Annotated[str, typer.Option("--node", help="The node's name, or a pattern such as 'layer1/*'.")]


def explain(
    model: o.ModelIn,
    node: Node,
    pipeline: o.Pipeline = None,
    recipe: o.Recipe = None,
    level: o.Level = None,
    preset: o.Preset = None,
    plugin: o.Plugin = None,
    calibration: o.Calibration = None,
    dim: o.Dims = None,
    seed: o.Seed = 0,
    json: o.Json = False,
) -> None:
    """Say what each pass did at a node: applied, or which condition failed, with the nodes around it."""
    from graphopt.api import open_model
    from graphopt.base import Context
    from graphopt.cli.show import print_json
    from graphopt.data import open_data
    from graphopt.explain import explain as accounts_of

    opened = open_model(model, o.chosen_dims(dim))
    choices = o.Choices(pipeline=pipeline, recipe=recipe, level=level, preset=preset, plugin=plugin)
    batches = None if calibration is None else open_data(calibration, opened)
    accounts = accounts_of(opened, o.chosen_passes(choices), node, Context(calibration=batches, seed=seed))
    if json:
        fields = [dataclasses.asdict(account) for account in accounts]
        print_json({"model": str(model), "accounts": [{"pass": f.pop("pass_"), **f} for f in fields]})
        return
    passes = {account.pass_ for account in accounts}
    for account in accounts:
        typer.echo(f"{typer.style(account.node, bold=True)} ({account.op})  {account.pass_}: {account.outcome}")
        if account.outcome == "not considered" and len(account.reasons) == 1 and len(passes) > 1:
            continue  # of a pipeline, most passes have nothing to do with a node
        for reason in account.reasons:
            typer.echo(f"    {reason}")
        for line in account.neighbourhood:
            typer.echo(f"        {line}")
