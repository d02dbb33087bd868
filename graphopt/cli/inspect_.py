"""``graphopt inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.options import Json
from graphopt.errors import UsageError

Globs = list[str] | None


def inspect_(
    file: Annotated[Path, typer.Argument(help="An ONNX model or an artifact.", show_default=False)],
    node: Annotated[Globs, typer.Option(help="Only nodes whose name matches; repeatable.", show_default=False)] = None,
    op: Annotated[Globs, typer.Option(help="Only nodes of this operator; repeatable.", show_default=False)] = None,
    region: Annotated[
        str | None, typer.Option(help="Only nodes between two: FIRST..LAST, FIRST.. or ..LAST.", show_default=False)
    ] = None,
    weights: Annotated[
        bool | None,
        typer.Option("--weights/--no-weights", help="Read all weights; default: if they are below 256 MiB."),
    ] = None,
    patterns: Annotated[
        bool | None,
        typer.Option("--patterns/--no-patterns", help="Ask passes what they would do; default: for small models."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print the nodes as CSV.")] = False,
    json: Json = False,
) -> None:
    """Show what a model is made of: operators, shapes, costs, memory, weights, quantization, what passes would do."""
    import dataclasses

    from graphopt.artifact import read
    from graphopt.cli.files import open_graph
    from graphopt.cli.show import print_json
    from graphopt.inspect import as_csv, as_text, built, inspect, select

    if csv and json:
        raise UsageError("give --csv or --json, not both.")
    model = open_graph(file)
    wanted = False if csv else None  # CSV shows neither
    summary = inspect(model, wanted if weights is None else weights, wanted if patterns is None else patterns)
    if file.suffix == ".gopt":
        summary = dataclasses.replace(summary, built=built(read(file)))
    if node or op or region is not None:
        summary = select(summary, model, node or (), op or (), region)
    if json:
        print_json(summary.to_json())
    else:
        typer.echo(as_csv(summary) if csv else as_text(summary), nl=not csv)
