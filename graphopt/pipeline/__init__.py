"""Ordered passes over a graph: their text form, their registry, the driver, and the observers around it."""

from graphopt.pipeline.driver import Result, Step, run
from graphopt.pipeline.presets import PRESETS, preset
from graphopt.pipeline.recipe import load_recipe, recipe_schema
from graphopt.pipeline.registry import load_plugin, make_pass, make_target, parse_pipeline, pass_names, target_names

__all__ = [
    "PRESETS",
    "Result",
    "Step",
    "load_plugin",
    "load_recipe",
    "make_pass",
    "make_target",
    "parse_pipeline",
    "pass_names",
    "preset",
    "recipe_schema",
    "run",
    "target_names",
]
