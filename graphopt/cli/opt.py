"""``graphopt opt``: ONNX in, ONNX out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import options as o
from graphopt.errors import UsageError


def opt(
    model: o.ModelIn,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the optimised model goes.")],
    pipeline: o.Pipeline = None,
    recipe: o.Recipe = None,
    level: o.Level = None,
    preset: o.Preset = None,
    plugin: o.Plugin = None,
    calibration: o.Calibration = None,
    dim: o.Dims = None,
    seed: o.Seed = 0,
    verify: o.Verify = True,
    print_each: o.PrintEach = False,
    dump_each: o.DumpEach = None,
    stop_after: o.StopAfter = None,
    bisect_limit: o.BisectLimit = None,
    reproducer: o.Reproducer = None,
    html: o.Html = None,
    json: o.Json = False,
) -> None:
    """Run passes over a model and write the result as ONNX. Without a pipeline: -O2."""
    from graphopt import graph
    from graphopt.api import open_model, step_report
    from graphopt.atomic import check_writable
    from graphopt.cli.account import print_steps
    from graphopt.cli.report import first_batch, write_page
    from graphopt.cli.show import print_json
    from graphopt.graph.cost import totals
    from graphopt.report import of_result

    if output.suffix == ".gopt":
        raise UsageError(f"can't write {output}: opt gives an ONNX model; graphopt compile gives an artifact.")
    choices = o.Choices(
        pipeline, recipe, level, preset, plugin, calibration, dim, seed, verify,
        print_each, dump_each, stop_after, bisect_limit, reproducer,
    )  # fmt: skip
    for path in filter(None, (output, html)):
        check_writable(path)
    before = open_model(model, o.chosen_dims(dim))
    result = o.run_chosen(before, choices)
    graph.save(result.model, output)
    if html is not None:
        write_page(of_result(model.name, before, result, feeds=first_batch(calibration, before)), html, quiet=json)
    if json:
        print_json(
            {
                "input": str(model),
                "output": str(output),
                "passes": [step_report(step) for step in result.steps],
                "before": totals(before),
                "after": totals(result.model),
            }
        )
    else:
        print_steps(before, result)
        typer.echo(f"wrote {output}")
