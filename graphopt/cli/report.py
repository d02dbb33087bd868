"""``graphopt report`` and ``graphopt view``: what happened to a model, as one HTML page."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli.options import Json

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.report import Evidence

Model = Annotated[Path, typer.Argument(help="An artifact, or an ONNX model.", show_default=False)]
Other = Annotated[
    Path | None, typer.Argument(help="An ONNX model that the first one became, to compare.", show_default=False)
]
Input = Annotated[Path | None, typer.Option("-i", "--input", help="An .npz with the inputs; default: random.")]
Seconds = Annotated[float, typer.Option(min=0.05, help="How long kernels are timed.")]
Measure = Annotated[
    bool, typer.Option("--measure/--no-measure", help="Time an artifact's kernels, and run both graphs for errors.")
]


def report(
    model: Model,
    other: Other = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where the page goes; default: beside here, as NAME.html.")
    ] = None,
    input: Input = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for the timing.")] = 1,
    seconds: Seconds = 1.0,
    measure: Measure = True,
    json: Json = False,
) -> None:
    """Write one HTML file that shows the graph before and after, the passes, where time goes and error enters.

    It opens offline and loads nothing.
    """
    from graphopt import report as r
    from graphopt.atomic import check_writable
    from graphopt.cli.show import print_json, size

    path = Path(f"{model.stem}.html") if output is None else output
    check_writable(path)
    evidence = r.gather(model, other, feeds=input, threads=threads, seconds=seconds, measure=measure)
    r.write(evidence, path)
    if json:
        print_json({"output": str(path), "bytes": path.stat().st_size, "notes": list(evidence.notes)})
        return
    for note in evidence.notes:
        typer.echo(note, err=True)
    typer.echo(f"wrote {path}: {size(path.stat().st_size)}; open it in a browser")


def view(
    model: Model,
    other: Other = None,
    input: Input = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0: any free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    seconds: Seconds = 0.5,
    measure: Measure = True,
) -> None:
    """Show a model, two of them or an artifact in the browser; reload the page when a file changed. Ctrl-C ends."""
    from graphopt import report as r
    from graphopt.report.page import page
    from graphopt.report.serve import Server

    files = [path for path in (model, other) if path is not None]
    kept: dict[tuple[Any, ...], str] = {}

    def render() -> str:
        stamp = tuple((p.stat().st_mtime_ns, p.stat().st_size) if p.exists() else None for p in files)
        if stamp not in kept:
            evidence = r.gather(model, other, feeds=input, seconds=seconds, measure=measure)
            kept.clear()
            kept[stamp] = page(evidence)
        return kept[stamp]

    render()  # a mistake shows here, not in the browser
    with Server(render, port) as server:
        typer.echo(f"{server.url}  (Ctrl-C ends)")
        for command in viewers(model):
            typer.echo(f"or: {command}")
        if browser:
            import webbrowser

            webbrowser.open(server.url)
        _until_interrupted(server.serve_forever)


def viewers(model: Path) -> list[str]:
    """Commands of other viewers that are installed and read this file."""
    import shlex

    known = {"netron": "netron {}", "model-explorer": "model-explorer {}"} if model.suffix == ".onnx" else {}
    return [text.format(shlex.quote(str(model))) for name, text in known.items() if shutil.which(name)]


class _InterruptedError(Exception):
    """Ctrl-C, where it is the way to end and no accident."""


def _until_interrupted(serve: Any) -> None:
    def stop(*_: Any) -> None:
        raise _InterruptedError

    before = signal.signal(signal.SIGINT, stop)
    try:
        serve()
    except _InterruptedError:
        typer.echo("")
    finally:
        signal.signal(signal.SIGINT, before)


def first_batch(calibration: Path | None, model: ir.Model) -> dict[str, Any] | None:
    """The first of the calibration samples: real inputs to show errors on."""
    from graphopt.data import open_data

    return None if calibration is None else next(iter(open_data(calibration, model)))


def write_page(evidence: Evidence, path: Path, quiet: bool) -> None:
    """The page that ``--html`` asked another command for."""
    from graphopt import report as r

    r.write(evidence, path)
    if not quiet:
        typer.echo(f"wrote {path}")
