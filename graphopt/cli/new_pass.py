"""``graphopt new-pass``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new_pass(
    name: Annotated[str, typer.Argument(help="Kebab-case, such as fuse-double-relu.", show_default=False)],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A new folder; default: the name.")] = None,
) -> None:
    """Write a package with a working pass, its tests and its entry point, to start from."""
    import shlex

    from graphopt.scaffold import new_pass as write

    for path in write(name, output):
        typer.echo(f"wrote {path}")
    folder = shlex.quote(str(output or name))
    typer.echo(f"next: cd {folder} && pip install -e '.[dev]' && pytest && graphopt passes")
