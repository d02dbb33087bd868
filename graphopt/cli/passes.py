"""``graphopt passes``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graphopt.cli.options import Json, Plugin
from graphopt.errors import UsageError


def passes(
    plugin: Plugin = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipe files.")] = False,
    json: Json = False,
) -> None:
    """List the passes: what each does, what it preserves, its options. And the presets made of them."""
    from graphopt.cli.show import options_line, print_entries, print_json
    from graphopt.pipeline import PRESETS, load_plugin, pass_names, recipe_schema
    from graphopt.pipeline.registry import describe, pass_class

    for path in plugin or ():
        load_plugin(path)
    if schema:
        print_json(recipe_schema())
        return
    described: list[dict[str, Any]] = []
    for name in pass_names():
        try:
            described.append(describe(pass_class(name)))
        except UsageError as error:  # a package that is broken must not hide the others
            typer.echo(f"graphopt: {name} is left out: {error}", err=True)
    if json:
        print_json(described)
        return
    print_entries((d["name"], d["preserves"], [d["summary"], options_line(d["options"])]) for d in described)
    typer.echo("\npresets")
    print_entries((name, "", [text.replace(",", ", ") or "no passes"]) for name, text in PRESETS.items())
