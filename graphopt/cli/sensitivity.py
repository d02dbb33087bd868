"""``graphopt sensitivity``: what quantization does to each node."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from graphopt.cli import options as o

Samples = Annotated[int, typer.Option(min=1, help="Calibration samples that noise is measured on.")]


def sensitivity(
    model: o.ModelIn,
    pipeline: o.Pipeline = None,
    recipe: o.Recipe = None,
    preset: o.Preset = None,
    calibration: o.Calibration = None,
    dim: o.Dims = None,
    seed: o.Seed = 0,
    samples: Samples = 32,
    json: o.Json = False,
) -> None:
    """Show how much noise a quantizing pipeline (--preset int8 by default) puts on each node, worst first."""
    from graphopt.api import open_model
    from graphopt.cli.show import print_json, print_table
    from graphopt.data import open_data
    from graphopt.errors import DataError
    from graphopt.passes.precision import sensitivity as measure

    if calibration is None:
        raise DataError("noise is measured on calibration data: pass --calibration DATA.")
    preset = "int8" if pipeline is None and recipe is None and preset is None else preset
    opened = open_model(model, o.chosen_dims(dim))
    choices = o.Choices(
        pipeline=pipeline, recipe=recipe, preset=preset, calibration=calibration, seed=seed, verify=False
    )
    quantized = o.run_chosen(opened, choices).model
    noises = sorted(measure(quantized, open_data(calibration, opened), samples), key=lambda noise: noise.output)
    if json:
        print_json({"model": str(model), "nodes": [dataclasses.asdict(noise) for noise in noises]})
        return
    rows = [[n.node, n.op, f"{n.alone:.1f}", f"{n.accumulated:.1f}", f"{n.output:.1f}"] for n in noises]
    print_table(["node", "operator", "alone dB", "accumulated dB", "at the outputs dB"], rows)
