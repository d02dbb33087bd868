"""The state of training in one .npz file, replaced as a whole after every epoch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.atomic import atomic_write
from graphopt.errors import UsageError
from graphopt.training.optimizers import Optimizer
from graphopt.training.settings import Settings
from graphopt.training.window import Array

if TYPE_CHECKING:
    from graphopt.training.fit import History


@dataclasses.dataclass
class State:
    """All that the next epoch depends on, besides the data."""

    history: History
    weights: dict[str, Array]
    best: dict[str, Array]
    optimizer: Optimizer

    def arrays(self) -> dict[str, Array]:
        """Every array by a name for the file."""
        moments = {f"moment{i}/{j}": a for i, row in enumerate(self.optimizer.moments) for j, a in enumerate(row)}
        weights = {f"weight/{name}": array for name, array in self.weights.items()}
        return weights | {f"best/{name}": array for name, array in self.best.items()} | moments


def write(settings: Settings, seed: int, state: State) -> None:
    """Write the state, if a checkpoint is asked for."""
    if not settings.checkpoint:
        return
    about: dict[str, Any] = {"run": _run(settings, seed, state), "history": dataclasses.asdict(state.history)}
    about["steps"] = state.optimizer.steps
    with atomic_write(_path(settings)) as scratch, scratch.open("wb") as file:
        np.savez(file, allow_pickle=False, about=np.array(json.dumps(about)), **state.arrays())


def resume(settings: Settings, seed: int, state: State) -> None:
    """Take the state from the checkpoint, if there is one.

    Raises:
        UsageError: it can't be read, or is of another model or of other settings.
    """
    if not settings.checkpoint or not _path(settings).exists():
        return
    path = _path(settings)
    try:
        with np.load(path, allow_pickle=False) as saved:
            about = json.loads(str(saved["about"]))
            arrays = {name: saved[name] for name in saved.files if name != "about"}
        same = about["run"] == _run(settings, seed, state)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a checkpoint of training ({error}): name another file, or remove it."
        ) from error
    if not same:
        raise UsageError(f"{path} is the checkpoint of another model or of other settings: name another, or remove it.")
    for name, array in state.arrays().items():
        array[...] = arrays[name]
    for name, value in about["history"].items():
        setattr(state.history, name, value)
    state.optimizer.steps = about["steps"]


def _path(settings: Settings) -> Path:
    return Path(settings.checkpoint)


def _run(settings: Settings, seed: int, state: State) -> str:
    """A digest of what must be the same for training to go on: settings, seed, shapes of the weights."""
    options: dict[str, Any] = dataclasses.asdict(settings)
    del options["checkpoint"]
    shapes = {name: list(array.shape) for name, array in state.arrays().items()}
    text = json.dumps([options, seed, shapes], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
