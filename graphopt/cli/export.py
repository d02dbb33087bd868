"""``graphopt export``: an artifact's model as a static library for C."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.options import Json


def export(
    artifact: Annotated[Path, typer.Argument(help="An artifact compiled for llvm.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write into.")],
    name: Annotated[str, typer.Option(help="What the library and its C function are called after.")] = "model",
    json: Json = False,
) -> None:
    """Write a C header and a static library that needs neither Python nor TVM: for embedding.

    The model is compiled anew for the artifact's CPU, with one thread. Its dimensions must be known (--dim N=1).
    """
    from graphopt.api import export as export_
    from graphopt.cli.show import print_json, size

    written = export_(artifact, output, name=name)
    if json:
        print_json(written)
        return
    typer.echo(f"wrote {written['library']} ({size(written['bytes'])}), {name}.h and main.c for {written['cpu']}")
    typer.echo(f"the example: cd {output} && {written['build']}")
