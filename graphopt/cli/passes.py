"""``graphopt passes``."""

from __future__ import annotations

from typing import Annotated

import typer

from graphopt.cli.options import Json, Plugin


def passes(
    plugin: Plugin = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipe files.")] = False,
    json: Json = False,
) -> None:
    """List the passes: what each does, what it preserves, its options. And the presets made of them."""
    from graphopt.cli.show import print_json, print_table
    from graphopt.pipeline import PRESETS, load_plugin, pass_names, recipe_schema
    from graphopt.pipeline.registry import describe, pass_class

    for path in plugin or ():
        load_plugin(path)
    if schema:
        print_json(recipe_schema())
        return
    described = [describe(pass_class(name)) for name in pass_names()]
    if json:
        print_json(described)
        return
    print_table(
        ["pass", "preserves", "options", "what it does"],
        [[d["name"], d["preserves"], _options(d["options"]), d["summary"]] for d in described],
    )
    print_table(["preset", "passes"], [[name, text or "none"] for name, text in PRESETS.items()])


def _options(options: dict[str, dict[str, object]]) -> str:
    return "\n".join(f"{name}={option.get('default', 'required')}" for name, option in options.items())
