"""The list of commands. Imports here must stay light: ``graphopt --help`` answers in half a second."""

from __future__ import annotations

from typing import Annotated

import typer

from graphopt import __version__
from graphopt.cli import (
    bench,
    bisect,
    calibrate,
    compare,
    compile_,
    demo,
    diff,
    evaluate,
    explain,
    export,
    inspect_,
    models,
    new_pass,
    npu,
    opt,
    passes,
    prune,
    quantize,
    reduce,
    report,
    run,
    sensitivity,
    targets,
)

app = typer.Typer(
    name="graphopt",
    help="Optimise ONNX models with ordered passes, and compile them through Apache TVM to llvm, cuda or npu.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graphopt {__version__}")
        raise typer.Exit


@app.callback()
def _main(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Optimise ONNX models with ordered passes, and compile them through Apache TVM to llvm, cuda or npu."""


app.command("opt")(opt.opt)
app.command("calibrate")(calibrate.calibrate)
app.command("compile")(compile_.compile_)
app.command("quantize")(quantize.quantize)
app.command("prune")(prune.prune)
app.command("sensitivity")(sensitivity.sensitivity)
app.command("run")(run.run)
app.command("export")(export.export)
app.command("bench")(bench.bench)
app.command("evaluate")(evaluate.evaluate)
app.command("inspect")(inspect_.inspect_)
app.command("diff")(diff.diff)
app.command("compare")(compare.compare)
app.command("explain")(explain.explain)
app.command("bisect")(bisect.bisect)
app.command("reduce")(reduce.reduce)
app.command("new-pass")(new_pass.new_pass)
app.command("report")(report.report)
app.command("view")(report.view)
app.command("passes")(passes.passes)
app.command("targets")(targets.targets)
app.add_typer(models.app, name="models")
app.add_typer(npu.app, name="npu")
app.command("demo")(demo.demo)
