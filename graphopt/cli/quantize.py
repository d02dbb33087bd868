"""``graphopt quantize``: the fastest mixture of integers and floats that keeps a metric."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.cli import options as o
from graphopt.cli.evaluate import evaluation_of
from graphopt.cli.sensitivity import Samples
from graphopt.errors import DataError

if TYPE_CHECKING:
    from graphopt.models.base import Evaluation
    from graphopt.passes.precision import Search


def quantize(
    model: o.ModelIn,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the quantized model goes.")],
    evaluation: Annotated[
        str,
        typer.Option(
            help="Data for the metric, other than for calibration: an .npz of inputs and labels, or a reference model.",
            rich_help_panel=o.KEPT,
        ),
    ],
    max_drop: o.MaxDrop = 0.01,
    metric: o.Metric = None,
    labels: o.Labels = "labels",
    pipeline: o.Pipeline = None,
    recipe: o.Recipe = None,
    preset: o.Preset = None,
    calibration: o.Calibration = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Compile and time each mixture for this target, such as llvm; default: times are estimated.",
            rich_help_panel=o.KEPT,
        ),
    ] = None,
    dim: o.Dims = None,
    seed: o.Seed = 0,
    samples: Samples = 32,
    json: o.Json = False,
) -> None:
    """Quantize (--preset int8 by default), leaving float what a metric needs: the fastest model within --max-drop."""
    from graphopt import graph, measure, oracle
    from graphopt.api import open_model
    from graphopt.atomic import check_writable
    from graphopt.base import Context
    from graphopt.cli.show import print_json
    from graphopt.data import open_data
    from graphopt.measure.mixed import OnTarget
    from graphopt.passes.correct.walk import sample
    from graphopt.passes.precision import search
    from graphopt.passes.precision.cost import estimate
    from graphopt.pipeline import make_target

    check_writable(output)
    if calibration is None:
        raise DataError("quantization needs calibration data: pass --calibration DATA.")
    preset = "int8" if pipeline is None and recipe is None and preset is None else preset
    passes = o.chosen_passes(o.Choices(pipeline=pipeline, recipe=recipe, preset=preset))
    opened = open_model(model, o.chosen_dims(dim))
    kept = evaluation_of(evaluation, opened, metric, labels)
    machine = None if target is None else make_target(target)
    batches = open_data(calibration, opened)
    context = Context(calibration=batches, seed=seed, target=machine)
    timer = None if machine is None else OnTarget(machine, sample(batches, 1)[0])
    found = search(
        opened,
        passes,
        context,
        lambda candidate: measure.evaluate(oracle.Session(candidate).run, kept),
        max_drop,
        time=estimate if timer is None else timer.time,
        gains=None if timer is None else timer.gains,
        samples=samples,
    )
    graph.save(found.model, output)
    if json:
        about = {"input": str(model), "output": str(output), "metric": kept.metric, "n": kept.n, "target": target}
        print_json(about | found.report())
    else:
        _print(found, kept, max_drop, measured=timer is not None)
        typer.echo(f"wrote {output}")


def _print(found: Search, kept: Evaluation, max_drop: float, *, measured: bool) -> None:
    from graphopt.cli.show import print_table

    rows = [
        [
            "chosen" if point is found.chosen else "",
            f"{len(point.floats)}",
            f"{point.metric:.4f}",
            f"{point.time:.2f}",
            ", ".join(point.floats),
        ]
        for point in sorted(found.frontier, key=lambda p: p.time)
    ]
    rows.append(["" if found.chosen else "chosen", "all", f"{found.float_metric:.4f}", "1.00", ""])
    print_table(["", "float nodes", kept.metric, "time (measured)" if measured else "time (estimate)", "which"], rows)
    if found.chosen is None:
        kept_it = any(point.metric >= found.float_metric - max_drop - 1e-9 for point in found.frontier)
        why = "is faster than the float model" if kept_it else f"stays within {max_drop:g} of the float model"
        typer.echo(f"no mixture {why}: it stays float.")
    typer.echo(f"{kept.metric} on {kept.n} samples. To repeat: -p '{found.report()['pipeline']}'")
