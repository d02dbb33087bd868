"""``graphopt prune``: the smallest model that keeps a metric, accepted where it is measured faster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from graphopt.cli import options as o
from graphopt.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from graphopt.data import Batches, Feeds
    from graphopt.models.base import Evaluation
    from graphopt.passes.channels.search import Found

HELD_OUT = 0.25


def prune(
    model: o.ModelIn,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the pruned model goes.")],
    evaluation: Annotated[
        str | None,
        typer.Option(
            help="Data for the metric: an .npz of inputs and labels, or a reference model. "
            "Without: agreement with the original on a quarter of the calibration data.",
            rich_help_panel=o.KEPT,
        ),
    ] = None,
    max_drop: o.MaxDrop = 0.01,
    metric: o.Metric = None,
    labels: o.Labels = "labels",
    target: Annotated[str, typer.Option(help="What the speed is measured on, one thread by default.")] = (
        "llvm{threads=1}"
    ),
    tries: Annotated[int, typer.Option(min=1, help="How many budgets are tried.")] = 5,
    pipeline: o.Pipeline = None,
    recipe: o.Recipe = None,
    calibration: o.Calibration = None,
    dim: o.Dims = None,
    seed: o.Seed = 0,
    json: o.Json = False,
) -> None:
    """Prune channels (-O2 and prune-channels by default) as far as --max-drop allows, if that is faster on --target."""
    from graphopt import graph, measure, oracle
    from graphopt.api import open_model
    from graphopt.atomic import check_writable
    from graphopt.base import Context
    from graphopt.cli.show import print_json
    from graphopt.data import open_data
    from graphopt.measure.speedup import Beside
    from graphopt.passes.channels.search import search
    from graphopt.pipeline import PRESETS, make_target

    check_writable(output)
    if calibration is None:
        raise DataError("pruning refits the remaining weights on calibration data: pass --calibration DATA.")
    machine = make_target(target)
    if pipeline is None and recipe is None:
        pipeline = f"{PRESETS['O2']},prune-channels"
    passes = o.chosen_passes(o.Choices(pipeline=pipeline, recipe=recipe))
    opened = open_model(model, o.chosen_dims(dim))
    batches = open_data(calibration, opened)
    fitting, kept = _metric(evaluation, opened, metric, labels, batches)
    example = _one(batches)
    found = search(
        opened,
        passes,
        Context(calibration=fitting, seed=seed, target=machine),
        lambda candidate: measure.evaluate(oracle.Session(candidate).run, kept),
        max_drop,
        lambda original: Beside(original, machine, example).speed,
        tries,
    )
    graph.save(found.model, output)
    if json:
        print_json(
            {
                "input": str(model),
                "output": str(output),
                "target": target,
                "metric": kept.metric,
                "n": kept.n,
                **found.report(),
            }
        )
    else:
        _print(found, kept, max_drop)
        typer.echo(f"wrote {output}")


def _metric(
    source: str | None,
    model: ir.Model,
    metric: Literal["accuracy", "agreement"] | None,
    labels: str,
    calibration: Batches,
) -> tuple[Batches, Evaluation]:
    """What weights are fitted on, and what the metric is measured on."""
    from graphopt.cli.evaluate import evaluation_of
    from graphopt.measure.labelled import agreement

    if source is not None:
        return calibration, evaluation_of(source, model, metric, labels)
    if metric == "accuracy":
        raise UsageError("accuracy needs labels: pass --evaluation labelled.npz.")
    fitting, held = calibration.split(HELD_OUT)
    return fitting, agreement(model, held)


def _one(batches: Batches) -> Feeds:
    """One sample where batches may be cut, else one batch."""
    return next(iter(batches.pieces(1)))


def _print(found: Found, kept: Evaluation, max_drop: float) -> None:
    from graphopt.cli.show import print_table

    part: Callable[[float | None], str] = lambda value: "" if value is None else f"{value:.2f}"  # noqa: E731
    rows = [
        [
            "chosen" if one is found.chosen else "",
            f"{one.asked:g}",
            f"{one.metric:.4f}",
            part(one.macs),
            part(one.parameters),
            part(one.predicted),
            part(one.measured),
        ]
        for one in found.tried
    ]
    rows.append(["" if found.chosen else "chosen", "", f"{found.original_metric:.4f}", "1.00", "1.00", "1.00", "1.00"])
    print_table(["", "macs=", kept.metric, "MACs", "weights", "time, predicted", "time, measured"], rows)
    if found.chosen is None:
        typer.echo(f"nothing that is faster stays within {max_drop:g} of the original: it is not pruned.")
    typer.echo(f"{kept.metric} on {kept.n} samples. To repeat: -p '{found.report()['pipeline']}'")
