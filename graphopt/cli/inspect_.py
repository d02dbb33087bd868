"""``graphopt inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.options import Json


def inspect_(
    file: Annotated[Path, typer.Argument(help="An ONNX model or an artifact.", show_default=False)],
    json: Json = False,
) -> None:
    """Show what a model is made of: operators, shapes, parameters, multiply-accumulates, bytes."""
    import dataclasses

    from graphopt.cli.files import open_graph
    from graphopt.cli.show import print_json
    from graphopt.inspect import inspect

    summary = inspect(open_graph(file))
    if json:
        print_json(dataclasses.asdict(summary))
    else:
        typer.echo(str(summary))
