"""``graphopt demo``: the main job on a reference model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.cli.options import Json

if TYPE_CHECKING:
    from graphopt.demo import Built, Stage


def demo(
    model: Annotated[str, typer.Option("--model", help="A reference model; see graphopt models list.")] = "digits",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for graphs and artifacts.")] = Path(
        "graphopt-demo"
    ),
    pipeline: Annotated[
        str | None, typer.Option("-p", "--pipeline", help="Passes; default: the mission's four.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.05, help="How long each latency is measured.")] = 1.0,
    json: Json = False,
) -> None:
    """Run a trained model through the four passes and onto the three targets, and show what each step did."""
    import dataclasses

    from graphopt import models
    from graphopt.cli.show import print_json
    from graphopt.demo import PIPELINE, Stage, run_demo
    from graphopt.pipeline import parse_pipeline

    reference = models.get(model)
    passes = parse_pipeline(PIPELINE if pipeline is None else pipeline)
    stages: list[Stage] = []
    built: list[Built] = []
    for row in run_demo(reference, output, passes, seconds=seconds):
        if isinstance(row, Stage):
            stages.append(row)
            _progress(json, f"{row.name}: done")
        else:
            built.append(row)
            _progress(json, f"{row.name}: done")
    if json:
        print_json(
            {
                "model": model,
                "stages": [dataclasses.asdict(s) for s in stages],
                "targets": [dataclasses.asdict(b) for b in built],
            }
        )
    else:
        _print(reference.name, stages, built, output)


def _progress(json: bool, text: str) -> None:
    if not json:
        typer.echo(text, err=True)


def _print(name: str, stages: list[Stage], built: list[Built], folder: Path) -> None:
    from graphopt import models
    from graphopt.cli.show import count, print_table, size

    make = models.get(name).evaluation
    assert make is not None
    evaluation = make()
    print_table(
        ["after", "nodes", "parameters", "zeros", "weights", "MACs", evaluation.metric, "onnxruntime", "llvm"],
        [
            [
                s.name, str(s.nodes), count(s.parameters), f"{s.zeros:.0%}", size(s.weight_bytes), count(s.macs),
                f"{s.metric:.4f}", f"{s.onnxruntime_ratio:.2f}x", f"{s.llvm_ratio:.2f}x",
            ]
            for s in stages
        ],
        title=f"{name}, after each pass",
    )  # fmt: skip
    print_table(
        ["target", "artifact", evaluation.metric, "speed"],
        [
            [
                b.name,
                size(b.artifact_bytes),
                "not run" if b.metric is None else f"{b.metric:.4f}",
                "-" if b.ratio is None else f"{b.ratio:.2f}x",
            ]
            for b in built
        ],
        title=f"{name}, all passes, on each target",
    )
    typer.echo(
        f"{evaluation.metric}: on {evaluation.n} labelled samples that neither training nor calibration saw. "
        "Speeds are ratios to onnxruntime on the float model (above 1: faster): batch 1, one thread, interleaved."
    )
    for row in (*stages, *built):
        for note in row.notes[:3]:
            typer.echo(f"{row.name}: {note}")
    typer.echo(f"open {folder}/report.html in a browser to see what happened")
    typer.echo(f"graphs and artifacts are in {folder}; try: graphopt diff {folder}/00-float.onnx {stages[-1].graph}")
