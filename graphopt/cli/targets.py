"""``graphopt targets``."""

from __future__ import annotations

from graphopt.cli.options import Json


def targets(json: Json = False) -> None:
    """List the targets: their options, and what each can and can't do on this machine."""
    from graphopt.cli.show import print_json, print_table
    from graphopt.pipeline import target_names
    from graphopt.pipeline.registry import describe, target_class

    described = [{**describe(c), "status": dict(c.status())} for c in map(target_class, target_names())]
    if json:
        print_json(described)
        return
    print_table(
        ["target", "options", "what it is", "on this machine"],
        [
            [
                str(d["name"]),
                "\n".join(f"{name}={option.get('default', 'required')}" for name, option in d["options"].items()),
                str(d["summary"]),
                "\n".join(f"{k}: {v}" for k, v in d["status"].items()),
            ]
            for d in described
        ],
    )
