"""``graphopt targets``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphopt.cli.options import Json


def targets(json: Json = False) -> None:
    """List the targets: their options, and what each can and can't do on this machine."""
    from graphopt.cli.show import options_line, print_entries, print_json
    from graphopt.pipeline import target_names
    from graphopt.pipeline.registry import describe, target_class

    described = [{**describe(c), "status": dict(c.status())} for c in map(target_class, target_names())]
    if json:
        print_json(described)
        return
    for d in described:
        status = [f"{key}: {_text(value)}" for key, value in d["status"].items()]
        print_entries([(str(d["name"]), "", [str(d["summary"]), options_line(d["options"]), *status])])


def _text(value: Any) -> str:
    """A value of a target's status for people."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
