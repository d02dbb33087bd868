"""Accuracy over speed of compressed models, as a plot; and cells of their tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Point(NamedTuple):
    """A model by a recipe: its speed, the points of the metric it gained, and its size as a part of the float one's."""

    recipe: str
    model: str
    speed: float
    gained: float
    size: float


def draw(points: Sequence[Point], path: Path, speed: str) -> bool:
    """A marker for each point, its area by size; False where matplotlib is not installed. `speed`: the axis' label."""
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for recipe in dict.fromkeys(point.recipe for point in points):
        of_it = [point for point in points if point.recipe == recipe]
        x, y = [point.speed for point in of_it], [point.gained for point in of_it]
        axes.scatter(x, y, s=[300 * point.size for point in of_it], alpha=0.6, label=recipe)
        for point in of_it:
            axes.annotate(point.model, (point.speed, point.gained), fontsize=7)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(speed)
    axes.set_ylabel("points gained on held-out labels")
    axes.legend(title="area: size of the file")
    figure.savefig(path)
    return True


def number(value: float | None, form: str) -> str:
    """A cell; empty where there is no value."""
    return "" if value is None else format(value, form)
