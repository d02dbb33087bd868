"""``graphopt bench``: latency beside other runtimes, interleaved in one process; or where the time goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli.options import Json
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.measure.profile import Profile

WIDTH = 40  # characters of a name in the table


def bench(
    artifact: Annotated[Path, typer.Argument(help="The artifact that graphopt compile wrote.", show_default=False)],
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            "--vs",
            help="What to compare with: onnxruntime (default), onnxruntime-cuda (on a GPU the default if it is "
            "installed), openvino, tvm, or a command with {model}; repeatable.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each.")] = 1,
    input: Annotated[
        Path | None, typer.Option("-i", "--input", help="An .npz with the inputs; default: random.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="The ONNX model that the others run; default: the artifact's, without its weights random."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 3.0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show what each kernel takes, and compare nothing.")
    ] = False,
    by_node: Annotated[
        bool,
        typer.Option("--by-node", help="With --profile: what each node of the model takes, beside onnxruntime."),
    ] = False,
    json: Json = False,
) -> None:
    """Time an artifact beside onnxruntime on the model it was compiled from. A ratio above 1: graphopt is faster."""
    from graphopt.cli.show import print_json
    from graphopt.measure.artifact import bench_artifact

    if by_node and not profile:
        raise UsageError("--by-node goes with --profile.")
    if profile:
        if against or source:
            raise UsageError("--profile compares nothing: give either --profile or --against.")
        (_profile_by_node if by_node else _profile)(artifact, threads, input, seconds, json)
        return
    row = bench_artifact(artifact, against=against or [], threads=threads, feeds=input, source=source, seconds=seconds)
    if json:
        print_json(row)
    else:
        _print_comparison(row)


def _print_comparison(row: dict[str, Any]) -> None:
    from graphopt.cli.show import print_table

    lines = [
        [name, f"{row[f'{name}_ms']:.3g}", f"{row[f'{name}_p10']:.3g} to {row[f'{name}_p90']:.3g}", ratio]
        for name, ratio in [("graphopt", ""), *((name, f"{ratio:.2f}") for name, ratio in row["ratios"].items())]
    ]
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    print_table(["", "median ms", "p10 to p90", "its time / graphopt's"], lines)
    typer.echo(f"{row['rounds']} interleaved rounds, {threads} each; above 1: graphopt is faster")
    if row["device"] == "cuda" and "onnxruntime" in row["ratios"]:
        typer.echo("onnxruntime ran on the CPU: --against onnxruntime-cuda is its CUDA provider (onnxruntime-gpu)")
    if row["drawn_weights"]:
        typer.echo("the artifact is without the model's weights: the others ran on random ones (--source model.onnx)")


def _profile(artifact: Path, threads: int, input: Path | None, seconds: float, json: bool) -> None:
    import dataclasses

    from graphopt.cli.show import print_json
    from graphopt.measure.profile import profile_artifact

    found = profile_artifact(artifact, threads=threads, feeds=input, seconds=seconds)
    if json:
        print_json(dataclasses.asdict(found))
    else:
        _print_profile(found)


def _profile_by_node(artifact: Path, threads: int, input: Path | None, seconds: float, json: bool) -> None:
    import dataclasses

    from graphopt.cli.show import print_json, print_table
    from graphopt.measure.by_node import profile_by_node

    found = profile_by_node(artifact, threads=threads, feeds=input, seconds=seconds)
    if json:
        print_json(dataclasses.asdict(found))
        return
    lines = [
        [
            *(_nodes(row.nodes), f"{row.ms:.3f}", f"{row.onnxruntime_ms:.3f}"),
            *("" if row.ratio is None else f"{row.ratio:.2f}", ", ".join(map(_start, row.kernels))),
        ]
        for row in found.rows
    ]
    lines.append(["(of no node)", f"{found.other_ms:.3f}", f"{found.onnxruntime_other_ms:.3f}", "", ""])
    print_table(["source nodes", "ms", "onnxruntime ms", "its time / ours", "kernels"], lines)
    typer.echo(f"a run without the profiler: {found.total_ms:.3g} ms; nodes that either computes together are one row")


def _nodes(names: list[str]) -> str:
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return (_end(names[0]) if names else "") + more


def _print_profile(found: Profile) -> None:
    from graphopt.cli.show import print_table

    lines: list[list[str]] = []
    for row in found.kernels:
        rate = "" if row.gflops is None else f"{row.gflops:.0f}"
        peak = "" if row.gflops is None else f"{row.gflops / found.peak_gflops:.0%}"
        lines.append(
            [_start(row.name), str(row.calls), f"{row.ms:.3f}", f"{row.share:.1%}", rate, peak, _nodes(row.nodes)]
        )
    print_table(["kernel", "calls", "ms", "share", "GFLOP/s", "of peak", "source nodes"], lines)
    typer.echo(
        f"a run without the profiler: {found.total_ms:.3g} ms; peak of {found.threads} "
        f"thread{'s' if found.threads > 1 else ''}: {found.peak_gflops:.0f} GFLOP/s, measured"
    )


def _start(name: str) -> str:
    return name if len(name) <= WIDTH else f"{name[: WIDTH - 3]}..."


def _end(name: str) -> str:
    return name if len(name) <= WIDTH else f"...{name[3 - WIDTH :]}"
