"""``graphopt bisect``: the pass that breaks a model, and the change within it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli import options as o
from graphopt.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from graphopt.data import Batches
    from graphopt.debug import Check, Culprit
    from graphopt.models.base import Evaluation

CheckText = Annotated[
    str | None,
    typer.Option(
        "--check",
        help="'command {model}' (exit code 0 is good, 125 can't tell), or a condition that a good model meets, such as "
        "'error<1e-3', 'sqnr>40' (beside the model given) or 'accuracy>=0.97' (with labelled data). "
        "Default: what each pass declares to preserve.",
    ),
]
Input = Annotated[Path | None, typer.Option("-i", "--input", help="An .npz with the inputs; default: random.")]
Out = Annotated[
    Path | None, typer.Option("-o", "--output", help="A folder for the models before and after the change.")
]
Reference = Annotated[str | None, typer.Option("--model", help="The reference model with the labelled data.")]
Data = Annotated[Path | None, typer.Option("--data", help="Labelled data: an .npz of the inputs and labels.")]
Labels = Annotated[str, typer.Option("--labels", help="The array of --data that holds the class numbers.")]


def bisect(
    model: o.ModelIn,
    check: CheckText = None,
    pipeline: o.Pipeline = None,
    recipe: o.Recipe = None,
    level: o.Level = None,
    preset: o.Preset = None,
    plugin: o.Plugin = None,
    calibration: o.Calibration = None,
    dim: o.Dims = None,
    seed: o.Seed = 0,
    input: Input = None,
    reference: Reference = None,
    data: Data = None,
    labels: Labels = "labels",
    output: Out = None,
    json: o.Json = False,
) -> None:
    """Find the first pass that breaks a model, and the first of its changes that does. Exit code 0: found or none."""
    from graphopt.api import open_model
    from graphopt.base import Context
    from graphopt.cli.show import print_json
    from graphopt.data import open_data
    from graphopt.debug import bisect as search
    from graphopt.progress import status

    opened = open_model(model, o.chosen_dims(dim))
    choices = o.Choices(pipeline=pipeline, recipe=recipe, level=level, preset=preset, plugin=plugin)
    passes = o.chosen_passes(choices)
    batches = None if calibration is None else open_data(calibration, opened)
    feeds = feeds_for(opened, input, batches, seed)
    evaluation = labelled_data(opened, reference, data, labels)
    judge = None if check is None else parse_check(check, opened, feeds, evaluation)
    with status("looking for the pass and the change"):
        found = search(opened, passes, feeds, judge, Context(batches, seed))
    if output is not None and found is not None:
        save_models(found, output)
    if json:
        print_json(None if found is None else _json(found))
    elif found is None:
        typer.echo(f"none of the {len(passes)} passes makes the model bad")
    else:
        _print(found)


def feeds_for(
    model: ir.Model, path: Path | None, batches: Batches | None, seed: int
) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs given; else the first calibration batch; else random ones."""
    from graphopt.data import open_data
    from graphopt.data.random import random_feeds

    if path is not None:
        batches = open_data(path, model)
    return dict(next(iter(batches))) if batches is not None else random_feeds(model, seed)


def labelled_data(model: ir.Model, reference: str | None, data: Path | None, labels: str) -> Evaluation | None:
    """The labelled data that --model or --data names."""
    from graphopt.cli.evaluate import reference_evaluation

    if reference is not None and data is not None:
        raise UsageError("give one of --model and --data: labelled data of a reference model, or your own.")
    if reference is not None:
        return reference_evaluation(reference)
    if data is None:
        return None
    from graphopt.measure.labelled import labelled

    return labelled(data, model, labels=labels)


def parse_check(text: str, model: ir.Model, feeds: dict[str, Any], evaluation: Evaluation | None = None) -> Check:
    """A command where there is a ``{`` in `text`, else a condition."""
    from graphopt.debug import command, condition

    return command(text) if "{" in text else condition(text, model, feeds, evaluation)


def save_models(found: Culprit, folder: Path) -> None:
    """``good.onnx`` and ``bad.onnx``: all but one change apart, as far as it could be told, else a pass apart."""
    from graphopt.graph import save

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"can't make the folder {folder}: {error.strerror or error}.") from error
    good = found.application.good if found.application else found.before
    bad = found.application.bad if found.application else found.after
    save(good, folder / "good.onnx")
    if bad is not None:
        save(bad, folder / "bad.onnx")


def _json(found: Culprit) -> dict[str, Any]:
    from graphopt.pipeline.registry import spec_of

    at = found.application
    change = at and {
        "number": at.number, "last": at.last, "total": at.total, "alone": at.alone,
        "old": at.old, "new": at.new, "says": at.says,
    }  # fmt: skip
    return {
        "pass": str(spec_of(found.pass_)),
        "position": found.position,
        "message": found.message,
        "change": change,
        "checks": found.checks,
    }


def _print(found: Culprit) -> None:
    from graphopt.pipeline.registry import spec_of

    typer.echo(
        f"{typer.style(found.pass_.name, bold=True)}, pass {found.position} of {found.total}, is the first bad one:"
    )
    typer.echo(f"    {found.message}")
    at = found.application
    if at is None:
        what = "its changes can't be made one by one" if found.after is not None else "it did not finish"
        typer.echo(f"{what}; graphopt reduce -p '{spec_of(found.pass_)}' finds the smallest model on which it fails")
        return
    which = f"change {at.number}" if at.number == at.last else f"one of the changes {at.number} to {at.last}"
    alone = {True: ", by itself too", False: ", only together with those before it", None: ""}[at.alone]
    typer.echo(f"{which} of its {at.total} (from inputs to outputs) is the first bad one{alone}:")
    for mark, lines in (("-", at.old), ("+", at.new), (" ", [f"the pass says of {line}" for line in at.says])):
        for line in lines:
            typer.echo(f"    {mark} {line}")
    typer.echo(f"{found.checks} checks")
