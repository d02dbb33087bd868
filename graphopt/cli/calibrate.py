"""``graphopt calibrate``: the statistics that quantization needs, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import options as o


def calibrate(
    model: o.ModelIn,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the statistics go, such as stats.json.")],
    data: Annotated[Path, typer.Option("--calibration", help="Unlabelled inputs: an .npz or a folder of them.")],
    pipeline: o.Pipeline = None,
    recipe: o.Recipe = None,
    preset: o.Preset = None,
    plugin: o.Plugin = None,
    dim: o.Dims = None,
    seed: o.Seed = 0,
    json: o.Json = False,
) -> None:
    """Gather the activations' statistics once, for insert-qdq{statistics=FILE}. Without a pipeline: preset int8.

    The passes before the first insert-qdq are run, and its own options say which values are looked at. Give the
    same pipeline to opt or compile: the file is sealed with the digest of the model that insert-qdq gets there.
    """
    from graphopt.api import open_model
    from graphopt.atomic import check_writable
    from graphopt.cli.show import print_json, size
    from graphopt.data import open_data
    from graphopt.errors import UsageError
    from graphopt.graph.digest import digest
    from graphopt.passes.insert_qdq import InsertQdq
    from graphopt.passes.quant.saved import save_statistics

    if pipeline is None and recipe is None and preset is None:
        preset = "int8"
    choices = o.Choices(pipeline, recipe, None, preset, plugin, data, dim, seed, verify=False)
    passes = o.chosen_passes(choices)
    quantizer = next((p for p in passes if isinstance(p, InsertQdq)), None)
    if quantizer is None:
        raise UsageError("the pipeline has no insert-qdq, which is what statistics are for.")
    check_writable(output)
    opened = open_model(model, o.chosen_dims(dim))
    before = o.run_passes(opened, passes[: passes.index(quantizer)], choices).model
    statistics = quantizer.gather(before, open_data(data, before))
    save_statistics(output, before, statistics)
    if json:
        print_json({"output": str(output), "model": digest(before), "values": [str(v.name) for v in statistics]})
    else:
        typer.echo(f"wrote {output}: {len(statistics)} values, {size(output.stat().st_size)}")
