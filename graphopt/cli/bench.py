"""``graphopt bench``: latency beside onnxruntime, interleaved in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from graphopt.cli.options import Json


def bench(
    artifact: Annotated[Path, typer.Argument(help="The artifact that graphopt compile wrote.", show_default=False)],
    against: Annotated[Literal["onnxruntime"], typer.Option(help="What to compare with.")] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=1, help="Threads of both.")] = 1,
    input: Annotated[
        Path | None, typer.Option("-i", "--input", help="An .npz with the inputs; default: random.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 3.0,
    json: Json = False,
) -> None:
    """Time an artifact beside onnxruntime on the model it was compiled from. A ratio above 1: graphopt is faster."""
    from graphopt.cli.show import print_json
    from graphopt.measure.artifact import bench_artifact

    row = bench_artifact(artifact, threads=threads, feeds=input, seconds=seconds)
    if json:
        print_json(row)
    else:
        typer.echo(
            f"graphopt {row['graphopt_ms']:.3g} ms, {against} {row['onnxruntime_ms']:.3g} ms: "
            f"ratio {row['ratio']:.2f} (above 1: graphopt is faster), {row['rounds']} interleaved rounds, "
            f"{threads} thread{'s' if threads > 1 else ''}"
        )
