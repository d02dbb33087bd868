"""Options that several commands share, and how they become a pipeline."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from graphopt.errors import PassError, UsageError
from graphopt.sizes import Sizes, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from graphopt.base import Pass, Target
    from graphopt.pipeline.driver import Observer, Result

PIPELINE = "Which passes to run"
WATCH = "Watching the passes"

ModelIn = Annotated[Path, typer.Argument(help="The ONNX model.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Pipeline = Annotated[
    str | None,
    typer.Option("-p", "--pipeline", help="Passes in order: 'a,b{key=value}'.", rich_help_panel=PIPELINE),
]
Recipe = Annotated[Path | None, typer.Option(help="A TOML file of passes.", rich_help_panel=PIPELINE)]
Level = Annotated[
    int | None, typer.Option("-O", min=0, max=3, help="Preset O0 to O3, as in -O2.", rich_help_panel=PIPELINE)
]
Preset = Annotated[str | None, typer.Option(help="A named pipeline, such as int8.", rich_help_panel=PIPELINE)]
Plugin = Annotated[
    list[Path] | None, typer.Option(help="A Python file that defines passes; repeatable.", rich_help_panel=PIPELINE)
]
Calibration = Annotated[
    Path | None,
    typer.Option(help="Unlabelled inputs: an .npz or a folder of them.", rich_help_panel=PIPELINE),
]
KEPT = "What is kept"
MaxDrop = Annotated[float, typer.Option(min=0.0, help="How far the metric may fall, absolute.", rich_help_panel=KEPT)]
Metric = Annotated[
    Literal["accuracy", "agreement"] | None,
    typer.Option(
        help="Of an .npz: 'accuracy', or 'agreement' with the original, without labels.", rich_help_panel=KEPT
    ),
]
Labels = Annotated[str, typer.Option(help="The array of the .npz that holds class numbers.", rich_help_panel=KEPT)]
Dims = Annotated[
    list[str] | None,
    typer.Option(
        "--dim",
        help="Size of an open dimension, N=1; or what it may be: N=1:64, T=16:512:16, N=1,8,*.",
        rich_help_panel=PIPELINE,
    ),
]
Values = Annotated[
    list[str] | None,
    typer.Option("--value", help="Make an input a constant, as in axes=1,2; repeatable.", rich_help_panel=PIPELINE),
]
Seed = Annotated[int, typer.Option(help="Seed of passes that draw random numbers.", rich_help_panel=PIPELINE)]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify", help="Compare outputs through onnxruntime after each pass.", rich_help_panel=WATCH
    ),
]
PrintEach = Annotated[
    bool, typer.Option("--print-each", help="Print the graph after each pass that changed it.", rich_help_panel=WATCH)
]
DumpEach = Annotated[
    Path | None, typer.Option(help="Save the graph after each pass that changed it here.", rich_help_panel=WATCH)
]
StopAfter = Annotated[str | None, typer.Option(help="Leave out all passes after this one.", rich_help_panel=WATCH)]
BisectLimit = Annotated[int | None, typer.Option(min=0, help="Run only the first N passes.", rich_help_panel=WATCH)]
Html = Annotated[
    Path | None,
    typer.Option("--html", help="Also write a report of it all as one HTML page here.", rich_help_panel=WATCH),
]
Reproducer = Annotated[
    Path | None,
    typer.Option(help="When a pass fails, save its input and the rest of the pipeline here.", rich_help_panel=WATCH),
]


@dataclasses.dataclass(frozen=True)
class Choices:
    """What the shared options said."""

    pipeline: str | None = None
    recipe: Path | None = None
    level: int | None = None
    preset: str | None = None
    plugin: list[Path] | None = None
    calibration: Path | None = None
    dims: list[str] | None = None
    seed: int = 0
    verify: bool = True
    print_each: bool = False
    dump_each: Path | None = None
    stop_after: str | None = None
    bisect_limit: int | None = None
    reproducer: Path | None = None


def chosen_passes(choices: Choices) -> list[Pass]:
    """The passes that the options name, after --stop-after and --bisect-limit."""
    from graphopt.pipeline import load_plugin, load_recipe, parse_pipeline, preset

    for path in choices.plugin or ():
        load_plugin(path)
    given = [choices.pipeline, choices.recipe, choices.level, choices.preset]
    if sum(option is not None for option in given) > 1:
        raise UsageError("give one of --pipeline, --recipe, -O and --preset, not several.")
    if choices.pipeline is not None:
        passes = parse_pipeline(choices.pipeline)
    elif choices.recipe is not None:
        passes = load_recipe(choices.recipe)
    elif choices.preset is not None:
        passes = preset(choices.preset)
    else:
        passes = preset(f"O{2 if choices.level is None else choices.level}")
    if choices.stop_after is not None:
        names = [p.name for p in passes]
        if choices.stop_after not in names:
            raise UsageError(f"--stop-after {choices.stop_after}: the pipeline has {', '.join(names) or 'no passes'}.")
        passes = passes[: names.index(choices.stop_after) + 1]
    return passes if choices.bisect_limit is None else passes[: choices.bisect_limit]


def chosen_sizes(texts: list[str] | None) -> dict[str, int]:
    """``["N=1"]`` as ``{"N": 1}``, for what works on fixed sizes only."""
    dims = chosen_dims(texts)
    for name, sizes in dims.items():
        if not isinstance(sizes, int):
            raise UsageError(f"--dim {name}={sizes}: one size is needed here, as in {name}=1.")
    return {name: size for name, size in dims.items() if isinstance(size, int)}


def chosen_dims(texts: list[str] | None) -> dict[str, int | Sizes]:
    """``["N=1", "T=1:64"]`` as ``{"N": 1, "T": Sizes(low=1, high=64)}``."""
    dims: dict[str, int | Sizes] = {}
    for text in texts or ():
        name, _, size = text.rpartition("=")
        if not name or not size:
            raise UsageError(f"--dim takes NAME=SIZES, as in N=1 or N=1:64, not {text!r}.")
        dims[name] = parse(name, size)
    return dims


def chosen_values(texts: list[str] | None) -> dict[str, list[float] | list[int] | float]:
    """``["axes=1,2", "k=3"]`` as ``{"axes": [1, 2], "k": 3}``; ``axes=1,`` is a list of one."""
    values: dict[str, list[float] | list[int] | float] = {}
    for text in texts or ():
        name, _, given = text.rpartition("=")
        try:
            numbers = [
                float(part) if set(part) & set(".einf") else int(part) for part in given.split(",") if part.strip()
            ]
        except ValueError:
            numbers = []
        if not name or not numbers:
            raise UsageError(f"--value takes NAME=NUMBERS, as in axes=1,2 (axes=1, for a list of one), not {text!r}.")
        values[name] = numbers if "," in given else numbers[0]
    return values


def run_chosen(model: ir.Model, choices: Choices, target: Target | None = None) -> Result:
    """Run the chosen passes over a model in normal form. `target`: what it will be compiled for."""
    return run_passes(model, chosen_passes(choices), choices, target)


def run_passes(model: ir.Model, passes: Sequence[Pass], choices: Choices, target: Target | None = None) -> Result:
    """Run `passes` over a model in normal form, with the data and the watchers that were chosen."""
    from graphopt.api import run_opened

    try:
        return run_opened(
            model,
            passes,
            calibration=choices.calibration,
            seed=choices.seed,
            verify=choices.verify,
            observers=_observers(choices),
            target=target,
        )
    except PassError:
        if choices.reproducer is not None:
            typer.echo(
                f"kept in {choices.reproducer}: the graph that the pass was given, and the passes left", err=True
            )
        raise


def _observers(choices: Choices) -> list[Observer]:
    from graphopt.pipeline import observers as o

    watching: list[Observer] = []
    if choices.reproducer is not None:
        watching.append(o.Reproducer(choices.reproducer))
    if choices.dump_each is not None:
        watching.append(o.DumpEach(choices.dump_each))
    if choices.print_each:
        watching.append(o.PrintEach(lambda text: typer.echo(text, err=True)))
    return watching
