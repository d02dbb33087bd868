"""``graphopt evaluate``: a metric on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli.options import Json


def evaluate(
    file: Annotated[Path, typer.Argument(help="An ONNX model (run by onnxruntime) or an artifact.")],
    model: Annotated[str, typer.Option("--model", help="The reference model whose labelled data to use.")],
    json: Json = False,
) -> None:
    """Measure a model or an artifact on the labelled held-out data of a reference model."""
    from graphopt.cli.show import print_json

    result = evaluate_file(file, model)
    if json:
        print_json(result)
    else:
        typer.echo(f"{file}: {result['metric']} {result['value']:.4f} on {result['n']} labelled samples")


def evaluate_file(file: Path, name: str) -> dict[str, Any]:
    """``{"metric", "value", "n"}`` of an ONNX file or artifact on the evaluation set of the reference model `name`."""
    from graphopt import artifact, models, oracle
    from graphopt.errors import UsageError
    from graphopt.graph import load
    from graphopt.measure import evaluate as measure

    make = models.get(name).evaluation
    if make is None:
        raise UsageError(f"the model {name!r} has no labelled data to evaluate on.")
    evaluation = make()
    if file.suffix == ".gopt":
        with artifact.load(file) as program:
            value = measure(program.run, evaluation)
    else:
        value = measure(oracle.Session(load(file), optimised=True).run, evaluation)
    return {"metric": evaluation.metric, "value": value, "n": evaluation.n}
