"""``graphopt compile``: ONNX in, artifact out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.cli import options as o
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.base import Target


def compile_(
    model: o.ModelIn,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the artifact goes, such as model.gopt.")],
    target: Annotated[str, typer.Option("--target", help="As in 'llvm{mcpu=native}'; see graphopt targets.")] = "llvm",
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose kernels by measuring them here: 'llvm{tune=true}' for the target.")
    ] = False,
    pipeline: o.Pipeline = None,
    recipe: o.Recipe = None,
    level: o.Level = None,
    preset: o.Preset = None,
    plugin: o.Plugin = None,
    keep_source: Annotated[
        bool,
        typer.Option("--keep-source", help="Keep both graphs' weights too, for graphopt export and compare."),
    ] = False,
    calibration: o.Calibration = None,
    dim: o.Dims = None,
    value: o.Values = None,
    seed: o.Seed = 0,
    verify: o.Verify = True,
    print_each: o.PrintEach = False,
    dump_each: o.DumpEach = None,
    stop_after: o.StopAfter = None,
    bisect_limit: o.BisectLimit = None,
    reproducer: o.Reproducer = None,
    html: o.Html = None,
    fallback: Annotated[
        bool, typer.Option("--fallback/--no-fallback", help="Run what can't be lowered on onnxruntime, and say so.")
    ] = True,
    json: o.Json = False,
) -> None:
    """Run passes over a model, lower it to a target and write one file that runs there. Without a pipeline: -O2."""
    import time

    from graphopt import artifact
    from graphopt.api import build, open_model, step_report
    from graphopt.atomic import check_writable
    from graphopt.cli.account import print_steps
    from graphopt.cli.report import first_batch, write_page
    from graphopt.cli.show import print_json, size
    from graphopt.graph.cost import totals
    from graphopt.pipeline import make_target
    from graphopt.report import of_artifact

    if output.suffix != ".gopt":
        raise UsageError(f"can't write {output}: an artifact's name ends in .gopt, by which other commands know it.")
    choices = o.Choices(
        pipeline, recipe, level, preset, plugin, calibration, dim, seed, verify,
        print_each, dump_each, stop_after, bisect_limit, reproducer,
    )  # fmt: skip
    machine = _tuned(make_target(target)) if tune else make_target(target)
    for path in filter(None, (output, html)):
        check_writable(path)
    before = open_model(model, o.chosen_dims(dim), o.chosen_values(value))
    result = o.run_chosen(before, choices, machine)
    start = time.perf_counter()
    program, parts = build(before, result, machine, seed=seed, fallback=fallback)
    artifact.write(output, program, **parts, keep_source=keep_source)
    seconds = time.perf_counter() - start
    if html is not None:
        evidence = of_artifact(output, feeds=first_batch(calibration, before), graphs=(before, result.model))
        write_page(evidence, html, quiet=json)
    if json:
        print_json(
            {
                "input": str(model),
                "output": str(output),
                "target": target,
                "compile_s": seconds,
                "bytes": output.stat().st_size,
                "before": totals(before),
                "after": totals(result.model),
                "passes": [step_report(step) for step in result.steps],
                "report": program.report,
            }
        )
        return
    print_steps(before, result)
    for note in program.report.get("notes", []):
        typer.echo(f"{target}: {note}")
    typer.echo(f"wrote {output}: {size(output.stat().st_size)}, compiled in {seconds:.1f} s")


def _tuned(target: Target) -> Target:
    """The same target with its option `tune`."""
    from graphopt.targets.llvm import Llvm

    if not isinstance(target, Llvm):
        raise UsageError(
            f"--tune chooses between kernels for the CPU, and the target {target.name} has no such choice."
        )
    return dataclasses.replace(target, tune=True)
