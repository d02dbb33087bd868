"""``graphopt run``: an artifact and inputs in, outputs out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.options import Json


def run(
    artifact: Annotated[Path, typer.Argument(help="The artifact that graphopt compile wrote.", show_default=False)],
    input: Annotated[Path, typer.Option("-i", "--input", help="An .npz with one array for each input.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the outputs go, as .npz.")],
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to use; default: all cores.")] = None,
    json: Json = False,
) -> None:
    """Run an artifact. Load only artifacts you trust: they carry machine code."""
    from graphopt import artifact as a
    from graphopt.atomic import check_writable
    from graphopt.cli.show import print_json
    from graphopt.data.files import read_npz, write_npz

    check_writable(output)
    feeds = read_npz(input)
    with a.load(artifact, threads=threads) as program:
        outputs = program.run(feeds)
    write_npz(output, outputs)
    if json:
        print_json({"output": str(output), "outputs": {k: _about(v) for k, v in outputs.items()}})
    else:
        for name, array in outputs.items():
            typer.echo(f"{name}: {array.dtype}{list(array.shape)}")
        typer.echo(f"wrote {output}")


def _about(array: object) -> dict[str, object]:
    return {"dtype": str(getattr(array, "dtype", "")), "shape": list(getattr(array, "shape", ()))}
