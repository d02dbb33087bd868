"""``graphopt evaluate``: a metric on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from graphopt.cli.options import Json

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.models.base import Evaluation

Labels = Annotated[str, typer.Option("--labels", help="The array of --data that holds the class numbers.")]


def evaluate(
    file: Annotated[Path, typer.Argument(help="An ONNX model (run by onnxruntime) or an artifact.")],
    model: Annotated[str | None, typer.Option("--model", help="The reference model with the labelled data.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Your own: an .npz of the inputs and labels.")] = None,
    labels: Labels = "labels",
    json: Json = False,
) -> None:
    """Measure a model or an artifact on labelled data: that of a reference model, or your own (top-1 accuracy)."""
    from graphopt.cli.show import print_json
    from graphopt.errors import UsageError

    if (model is None) == (data is None):
        raise UsageError("give one of --model and --data: labelled data of a reference model, or your own.")
    result = evaluate_file(file, model) if model is not None else evaluate_own(file, data or Path(), labels)
    if json:
        print_json(result)
    else:
        typer.echo(f"{file}: {result['metric']} {result['value']:.4f} on {result['n']} labelled samples")


def evaluate_file(file: Path, name: str) -> dict[str, Any]:
    """``{"metric", "value", "n"}`` of an ONNX file or artifact on the evaluation set of the reference model `name`."""
    return _measured(file, reference_evaluation(name))


def evaluate_own(file: Path, data: Path, labels: str) -> dict[str, Any]:
    """Likewise, on the samples and labels of the .npz file `data`."""
    from graphopt.cli.files import open_graph
    from graphopt.measure.labelled import labelled

    return _measured(file, labelled(data, open_graph(file), labels=labels))


def evaluation_of(
    source: str, model: ir.Model, metric: Literal["accuracy", "agreement"] | None, labels: str
) -> Evaluation:
    """What to choose by: of an .npz, or of a reference model its labelled samples apart from those reported on."""
    from graphopt import models
    from graphopt.errors import UsageError
    from graphopt.measure.labelled import labelled

    if source.endswith(".npz"):
        return labelled(Path(source), model, metric or "accuracy", labels)
    apart = models.get(source).selection
    found = apart() if apart is not None else reference_evaluation(source)
    if metric is not None and metric != found.metric:
        raise UsageError(f"the metric of the reference model {source!r} is {found.metric!r}, not {metric!r}.")
    return found


def reference_evaluation(name: str) -> Evaluation:
    """The labelled data of a reference model. Raises `UsageError` where it has none."""
    from graphopt import models
    from graphopt.errors import UsageError

    make = models.get(name).evaluation
    if make is None:
        raise UsageError(f"the model {name!r} has no labelled data to evaluate on.")
    return make()


def _measured(file: Path, evaluation: Evaluation) -> dict[str, Any]:
    from graphopt import artifact, oracle
    from graphopt.graph import load
    from graphopt.measure import evaluate as measure

    if file.suffix == ".gopt":
        with artifact.load(file) as program:
            value = measure(program.run, evaluation)
    else:
        value = measure(oracle.Session(load(file), optimised=True).run, evaluation)
    return {"metric": evaluation.metric, "value": value, "n": evaluation.n}
