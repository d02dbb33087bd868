"""``graphopt models``: the reference models with their data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.options import Json

app = typer.Typer(help="List, fetch and evaluate the reference models.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A name from graphopt models list.", show_default=False)]


@app.command("list")
def list_(json: Json = False) -> None:
    """List the reference models: what they are, their licence, metric and measured baseline."""
    from graphopt import models
    from graphopt.cli.show import print_entries, print_json

    rows = [models.get(name) for name in models.names()]
    if json:
        print_json(
            [
                {
                    "name": m.name,
                    "summary": m.summary,
                    "licence": m.licence,
                    "source": m.source,
                    "baseline": m.baseline,
                    "labelled": m.evaluation is not None,
                    "calibration": m.calibration is not None,
                }
                for m in rows
            ]
        )
        return
    print_entries(
        (m.name, "" if m.baseline is None else f"{m.baseline:.3f}", [m.summary, m.licence, m.source]) for m in rows
    )


@app.command()
def fetch(name: Name, json: Json = False) -> None:
    """Build or fetch a model into the cache (pinned version, checked digest) and print its path."""
    from graphopt import models
    from graphopt.cli.show import print_json

    path = models.get(name).path()
    if json:
        print_json({"name": name, "path": str(path)})
    else:
        typer.echo(path)


@app.command()
def evaluate(name: Name, json: Json = False) -> None:
    """Evaluate the float model in onnxruntime on its labelled held-out data."""
    from graphopt import models
    from graphopt.cli.evaluate import evaluate_file
    from graphopt.cli.show import print_json

    result = evaluate_file(models.get(name).path(), name)
    if json:
        print_json({"name": name, **result, "baseline": models.get(name).baseline})
    else:
        typer.echo(f"{name}: {result['metric']} {result['value']:.4f} on {result['n']} labelled samples")


@app.command()
def calibration(
    name: Name,
    output: Annotated[Path, typer.Option("-o", "--output", help="An .npz, or a folder for many.")],
    samples: Annotated[
        int | None, typer.Option(min=1, help="Up to so many samples, for passes that fit many weights.")
    ] = None,
) -> None:
    """Write a model's calibration data for --calibration: unlabelled, disjoint from the labelled set."""
    from graphopt import models
    from graphopt.data.files import write_batches
    from graphopt.errors import UsageError

    model = models.get(name)
    if model.calibration is None:
        raise UsageError(f"the model {name!r} has no calibration data.")
    if samples is None:
        data = model.calibration()
    elif model.unlabelled is None:
        raise UsageError(f"the model {name!r} has no more than its calibration data: leave out --samples.")
    else:
        data = model.unlabelled(samples)
    typer.echo(f"wrote {output}: {write_batches(output, data)} batches")
