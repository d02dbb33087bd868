"""``graphopt run``: an artifact and inputs in, outputs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli.options import Json

if TYPE_CHECKING:
    import numpy as np

    from graphopt.artifact.manifest import TensorSpec


def run(
    artifact: Annotated[Path, typer.Argument(help="The artifact that graphopt compile wrote.", show_default=False)],
    input: Annotated[Path, typer.Option("-i", "--input", help="An .npz with one array for each input.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the outputs go, as .npz.")],
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to use; default: all cores.")] = None,
    json: Json = False,
) -> None:
    """Run an artifact. Load only artifacts you trust: they carry machine code.

    A sequence NAME lies in the .npz as NAME/0, NAME/1 and so on; an optional without a value is left out.
    """
    from graphopt import artifact as a
    from graphopt.atomic import check_writable
    from graphopt.cli.show import print_json
    from graphopt.data.files import read_npz, write_npz

    check_writable(output)
    feeds = read_npz(input)
    with a.load(artifact, threads=threads) as program:
        outputs = _spread(program.run(_gathered(feeds, program.inputs)))
    write_npz(output, outputs)
    if json:
        print_json({"output": str(output), "outputs": {k: _about(v) for k, v in outputs.items()}})
    else:
        for name, array in outputs.items():
            typer.echo(f"{name}: {array.dtype}{list(array.shape)}")
        typer.echo(f"wrote {output}")


def _gathered(arrays: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """The arrays of an .npz as what the model takes."""
    feeds = dict(arrays)
    for spec in inputs:
        if spec.kind.endswith("sequence"):
            keys = sorted((k for k in arrays if _item_of(k, spec.name)), key=lambda key: int(key.rpartition("/")[2]))
            if keys or spec.kind == "sequence":
                feeds[spec.name] = [feeds.pop(key) for key in keys]
        if spec.kind.startswith("optional"):
            feeds.setdefault(spec.name, None)
    return feeds


def _item_of(key: str, name: str) -> bool:
    before, slash, index = key.rpartition("/")
    return bool(slash) and before == name and index.isdecimal()


def _spread(outputs: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """What the model gave as the arrays of an .npz, text as such."""
    import numpy as np

    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in outputs.items():
        items = {f"{name}/{k}": item for k, item in enumerate(value)} if isinstance(value, list) else {name: value}
        for key, item in items.items():
            if item is not None:
                array = np.asarray(item)
                arrays[key] = array.astype(str) if array.dtype == object else array
    return arrays


def _about(array: object) -> dict[str, object]:
    return {"dtype": str(getattr(array, "dtype", "")), "shape": list(getattr(array, "shape", ()))}
