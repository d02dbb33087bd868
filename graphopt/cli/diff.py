"""``graphopt diff``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.options import Json


def diff(
    before: Annotated[Path, typer.Argument(help="An ONNX model or an artifact.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="The model to compare with it.", show_default=False)],
    json: Json = False,
) -> None:
    """Show which nodes were added, removed, fused or changed between two models."""
    from graphopt.cli.files import open_graph
    from graphopt.cli.show import print_json
    from graphopt.diff import diff as compare

    result = compare(open_graph(before, sketched=True), open_graph(after, sketched=True))
    if json:
        print_json(result.to_json())
    else:
        typer.echo(str(result))
