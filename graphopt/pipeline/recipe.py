"""A pipeline as a TOML file::

description = "half the weights, then int8"

[[pass]]
name = "prune-magnitude"
sparsity = 0.5

[[pass]]
name = "insert-qdq"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.base import Pass


def load_recipe(path: str | Path) -> list[Pass]:
    """The passes a recipe file describes. Raises `UsageError` naming the file and the entry at fault."""
    from graphopt.pipeline.registry import make_pass
    from graphopt.pipeline.spec import Item

    path = Path(path)
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no recipe file {path}.") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the recipe {path} can't be read: {error}.") from error
    unknown = set(recipe) - {"description", "pass"}
    if unknown:
        raise UsageError(f"the recipe {path} has unknown keys: {', '.join(sorted(unknown))}.")
    entries: Any = recipe.get("pass", [])
    if not isinstance(entries, list):
        raise UsageError(f"the recipe {path} writes [pass] where [[pass]] is needed: each pass is one table of a list.")
    passes: list[Pass] = []
    for number, entry in enumerate(entries, 1):
        options: dict[str, Any] = dict(entry) if isinstance(entry, dict) else {}
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise UsageError(f"pass {number} of the recipe {path} has no name.")
        try:
            passes.append(make_pass(Item(name, options)))
        except UsageError as error:
            raise UsageError(f"pass {number} of the recipe {path}: {error}") from error
    return passes


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipe files, with every known pass and its options."""
    from pydantic import TypeAdapter

    from graphopt.pipeline.registry import pass_class, pass_names

    variants: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for name in pass_names():
        schema = TypeAdapter(pass_class(name)).json_schema()
        definitions |= schema.get("$defs", {})
        variants.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, **schema.get("properties", {})},
                "required": ["name", *schema.get("required", [])],
                "additionalProperties": False,
            }
        )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "graphopt recipe",
        "type": "object",
        "properties": {"description": {"type": "string"}, "pass": {"type": "array", "items": {"oneOf": variants}}},
        "additionalProperties": False,
        "$defs": definitions,
    }
