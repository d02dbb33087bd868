"""``graphopt compare``: where the numbers of two models part."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli.options import Json
from graphopt.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.data import Feeds


def compare(
    before: Annotated[Path, typer.Argument(help="The ONNX model whose numbers are right.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="An ONNX model or an artifact made from it.", show_default=False)],
    inputs: Annotated[
        Path | None, typer.Option("-i", "--inputs", help="An .npz with the inputs of one run; default: random.")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Samples: an .npz or a folder of them.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many samples of --calibration to run.")] = 16,
    threshold_db: Annotated[float, typer.Option(help="Signal to noise below which a node is named.")] = 30.0,
    fail: Annotated[bool, typer.Option("--fail", help="Exit with 1 when anything is below the threshold.")] = False,
    json: Json = False,
) -> None:
    """Run two models on the same inputs and show the error of every node, alone and accumulated."""
    from graphopt.cli.files import open_graph
    from graphopt.cli.show import print_json, print_table
    from graphopt.compare import compare as run
    from graphopt.noise import CLEAN
    from graphopt.printable import printable

    if not math.isfinite(threshold_db):
        raise UsageError("--threshold-db takes a number of decibels.")
    a, b = open_graph(before, runs=True), open_graph(after, runs=True)
    feeds = _feeds(a, inputs, calibration, samples)
    found = run(a, b, feeds, threshold_db=threshold_db, compiled=_compiled(after))
    if json:
        print_json({"before": str(before), "after": str(after), **found.to_json()})
    else:
        rows = [
            [printable(n.node), n.op, f"{n.accumulated.db:.1f}", f"{n.alone.db:.1f}", f"{n.accumulated.largest:.2g}",
             f"{n.accumulated.relative:.2g}", ", ".join(n.passes) if n.alone.db < CLEAN else ""]
            for n in found.nodes
        ]  # fmt: skip
        print_table(["node", "operator", "accumulated dB", "alone dB", "largest", "relative", "passes"], rows)
        for line in found.verdict():
            typer.echo(printable(line))
    if fail and found.past:
        raise typer.Exit(1)


def _feeds(model: ir.Model, inputs: Path | None, calibration: Path | None, samples: int) -> list[Feeds]:
    from graphopt.data import open_data
    from graphopt.data.files import read_npz
    from graphopt.data.random import random_feeds
    from graphopt.passes.correct.walk import sample

    if inputs is not None and calibration is not None:
        raise UsageError("give --inputs or --calibration, not both.")
    if inputs is not None:
        return [read_npz(inputs)]
    if calibration is not None:
        return sample(open_data(calibration, model), samples)
    typer.echo("no data was given: the inputs are random numbers.", err=True)
    return [random_feeds(model)]


def _compiled(path: Path) -> Any:
    """What runs the artifact at `path`; None for a model, and for an artifact that can't run here."""
    from graphopt.errors import ArtifactError

    if path.suffix != ".gopt":
        return None
    from graphopt.artifact import load

    try:
        return load(path).run
    except ArtifactError as error:
        typer.echo(f"only the artifact's graph is compared: {error}", err=True)
        return None
